import importlib
import json
import signal
import sys

import pytest
import torch
from lightning import Callback, Trainer
from paramixer.tasks.adding import adding
from paramixer.tasks.task import Counts
from paramixer.training import (
    BestCheckpoint,
    Curve,
    Learner,
    TaskData,
    evaluate_best,
    fit,
    learner_for,
    plot_curve,
    plot_mixing,
    versions,
    wilson_interval,
    write_json,
)

PNG = b"\x89PNG"


def tiny_data() -> TaskData:
    return TaskData(adding(32, Counts(200, 50, 50)), 20, full_length=True)


def tiny_module(data: TaskData) -> Learner:
    return learner_for(data.task, pooling="flatten", width=4, learning_rate=1e-2)


def tiny_trainer(*callbacks: Callback, epochs: int = 4, checkpoints: bool = False) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=checkpoints,
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
    curve, data = Curve(), tiny_data()
    assert fit(tiny_trainer(curve, epochs=6), tiny_module(data), data)
    assert [epoch["epoch"] for epoch in curve.epochs] == list(range(1, 7))
    assert curve.epochs[-1]["train_loss"] < curve.epochs[0]["train_loss"]
    assert curve.epochs[-1]["seconds"] >= curve.epochs[0]["seconds"] > 0


def test_best_checkpoint_is_what_is_evaluated(tmp_path):
    data, best = tiny_data(), BestCheckpoint(tmp_path, "validation_loss", "min")
    module, curve = tiny_module(data), Curve()
    trainer = tiny_trainer(best, curve, checkpoints=True)
    fit(trainer, module, data)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    result = evaluate_best(trainer, module, data, best)
    losses = [epoch["validation_loss"] for epoch in curve.epochs]
    assert result["chosen"] == {"epoch": 1 + losses.index(min(losses)), "by": "validation_loss"}
    assert result["test"]["count"] == 50
    [validated] = trainer.validate(module, data, verbose=False)
    assert validated["validation_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_interruption_keeps_what_was_learned():
    handler = signal.getsignal(signal.SIGINT)
    curve, data = Curve(), tiny_data()
    module = tiny_module(data)
    before = module.network.head.weight.clone()
    assert not fit(tiny_trainer(curve, Raise(KeyboardInterrupt())), module, data)
    assert len(curve.epochs) == 2
    assert not torch.equal(module.network.head.weight, before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), SystemExit(3)])
def test_other_errors_pass_through(error):
    data = tiny_data()
    with pytest.raises(type(error)):
        fit(tiny_trainer(Raise(error)), tiny_module(data), data)


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
    epochs = [{"epoch": n, "loss": 1 / (n + 1), "none": None} for n in range(9)]
    record = {"name": 'a "b"', "empty": [], "deep": {"epochs": epochs, "more": {}}}
    write_json(record, path)
    assert json.loads(path.read_text()) == record
    assert sum('"epoch"' in line for line in path.read_text().splitlines()) == len(epochs)
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
