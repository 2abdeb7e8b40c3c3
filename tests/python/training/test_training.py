import importlib
import json
import signal
import sys

import pytest
import torch
from lightning import Callback, Trainer
from paramixer.training import (
    Classification,
    Curve,
    SplitData,
    fit,
    plot_curve,
    plot_mixing,
    versions,
    wilson_interval,
    write_json,
)
from torch.utils.data import TensorDataset

PNG = b"\x89PNG"


def tiny_data(augment=None) -> SplitData:
    """The sign of the first of four numbers."""
    x = torch.randn(96, 4)
    y = (x[:, 0] > 0).long()
    parts = [TensorDataset(x[rows], y[rows]) for rows in torch.arange(96).split(32)]
    return SplitData(*parts, batch_size=10, augment=augment)


def tiny_module() -> Classification:
    return Classification(torch.nn.Linear(4, 2), 2, learning_rate=0.1, weight_decay=0.0)


def tiny_trainer(*callbacks: Callback, epochs: int = 4) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


class Raise(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise self.error


def test_fit_learns_and_leaves_its_curve():
    curve, module, data = Curve(), tiny_module(), tiny_data()
    trainer = tiny_trainer(curve, epochs=15)
    assert fit(trainer, module, data)
    assert [epoch["epoch"] for epoch in curve.epochs] == list(range(1, 16))
    assert curve.epochs[-1]["train_loss"] < curve.epochs[0]["train_loss"]
    assert curve.epochs[-1]["seconds"] >= curve.epochs[0]["seconds"] > 0
    [metrics] = trainer.test(module, data, verbose=False)
    x, y = data.test.tensors
    expected = (module(x).argmax(1) == y).float().mean()
    assert metrics["test_accuracy"] == pytest.approx(float(expected)) and expected > 0.85


def test_learning_rate_ends_its_cycle_with_the_training():
    module = tiny_module()
    fit(tiny_trainer(), module, tiny_data())
    schedule = module.lr_schedulers()
    assert schedule.last_epoch == schedule.total_steps == 4 * 4


def test_interruption_keeps_what_was_learned():
    handler = signal.getsignal(signal.SIGINT)
    curve, module = Curve(), tiny_module()
    before = module.model.weight.clone()
    assert not fit(tiny_trainer(curve, Raise(KeyboardInterrupt())), module, tiny_data())
    assert len(curve.epochs) == 2
    assert not torch.equal(module.model.weight, before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), SystemExit(3)])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)):
        fit(tiny_trainer(Raise(error)), tiny_module(), tiny_data())


def test_only_training_batches_are_augmented():
    seen = []

    def augment(x):
        seen.append(len(x))
        return x + 100

    data, module = tiny_data(augment), tiny_module()
    trainer = tiny_trainer(epochs=1)
    fit(trainer, module, data)
    trainer.test(module, data, verbose=False)
    assert sum(seen) == 32


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [(50, 100, (0.4038, 0.5962)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))],
)
def test_wilson_interval(successes, trials, interval):
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match=f"wilson_interval: .* got {successes} of {trials}"):
        wilson_interval(successes, trials)


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "record.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert versions()["torch"] == torch.__version__


@pytest.mark.parametrize("image", [None, torch.rand(4, 4)])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_pictures(tmp_path, image, scale):
    epoch = {
        f"{part}_{name}": 0.5 for part in ("train", "validation") for name in ("loss", "accuracy")
    }
    not_validated = {name: value for name, value in epoch.items() if name.startswith("train")}
    plot_curve([{"epoch": 1, **not_validated}, {"epoch": 2, **epoch}], tmp_path / "curve.png")
    plot_mixing(
        scale * torch.randn(16, 16),
        scale * torch.randn(16, 2, 3),
        [[0, 1, -1], [0, 2, -2]],
        5,
        tmp_path / "mixing.png",
        image,
    )
    for name in ("curve.png", "mixing.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_missing_package_names_the_remedy(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("paramixer.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"torchmetrics.*pip install paramixer\[train\]"):
        importlib.import_module("paramixer.training")
