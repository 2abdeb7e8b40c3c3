"""The command line of scripts/train.py, and what is promised of whole runs, with real processes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from paramixer.tasks import listops

SCRIPT = Path(__file__).parents[3] / "scripts" / "train.py"
PARTS = (90, 21, 31)  # no multiples of the batch size
FILES = {
    "record.json",
    "best.ckpt",
    "last.ckpt",
    "curve.png",
    "config.yaml",
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A tiny task of different lengths, whose masks and padding matter."""
    folder = tmp_path_factory.mktemp("data")
    grammar = listops.Grammar(max_depth=4, max_args=4, min_length=4, max_length=30)
    listops.write(folder, listops.Preset(grammar, listops.Counts(*PARTS)), threads=1)
    config = {
        "data": {"task": "lra-listops", "batch_size": 16, "settings": {"folder": str(folder)}},
        "model": {"mixer": "paramixer", "width": 8, "protocol": "cdil", "norm": True},
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    }
    path = folder / "listops.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path)]


@pytest.fixture
def run(monkeypatch):
    """Calls the script's main in this process."""
    names = runpy.run_path(str(SCRIPT), run_name="train")

    def call(*words):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        names["main"]()

    return call


def start(*words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def record_of(folder, seed=0) -> dict:
    return json.loads((folder / f"seed-{seed}" / "record.json").read_text())


def measures(record) -> np.ndarray:
    """All losses and accuracies of a run."""
    names = [f"{part}_{name}" for part in ("train", "validation") for name in ("loss", "accuracy")]
    rows = [[epoch[name] for name in names] for epoch in record["training"]["epochs"]]
    last = [record["test"][name] for name in ("loss", "accuracy")]
    return np.array([value for row in rows for value in row] + last)


def test_a_run_leaves_everything(run, arguments, tmp_path, capsys):
    run(*arguments, "--out", tmp_path)
    shown = capsys.readouterr().out
    assert "majority class" in shown and "root operator" in shown and "95 % interval" in shown
    assert "S4" in shown and "other variant (s4)" in shown
    left = {path.name for path in (tmp_path / "seed-0").iterdir()}
    assert left >= FILES and any(name.startswith("events.out.tfevents") for name in left)
    record = record_of(tmp_path)
    assert record["task"]["samples"] == list(PARTS) and record["test"]["count"] == PARTS[2]
    low, high = record["test"]["interval"]
    assert low <= record["test"]["accuracy"] <= high
    assert record["training"]["finished"] and len(record["training"]["epochs"]) == 3
    assert record["training"]["peak_memory_bytes"] > 2**20 and record["parameters"] > 100
    assert record["device"]["kind"] == "cpu" and len(record["git"]) in (0, 40, 41)
    best = max(e["validation_accuracy"] for e in record["training"]["epochs"])
    chosen = record["training"]["epochs"][record["chosen"]["epoch"] - 1]
    assert chosen["validation_accuracy"] == best
    with pytest.raises(SystemExit, match="holds a run already .* --resume true"):
        run(*arguments, "--out", tmp_path)


def test_two_processes_learn_what_one_learns(run, arguments, tmp_path):
    two = start(*arguments, "--out", tmp_path / "two", "--trainer.devices", 2)
    shown, _ = two.communicate(timeout=300)
    assert two.returncode == 0, shown
    run(*arguments, "--out", tmp_path / "one")
    records = [record_of(tmp_path / name) for name in ("one", "two")]
    assert [record["device"]["processes"] for record in records] == [1, 2]
    one, two = map(measures, records)
    np.testing.assert_allclose(one, two, atol=3e-5)
    assert one[0] != one[4]  # something was learned


def test_a_killed_run_goes_on_as_if_it_had_not_been(run, arguments, tmp_path):
    words = [*arguments, "--model.dropout", "0.3", "--trainer.max_epochs", "200"]
    victim = start(*words, "--out", tmp_path / "killed", "--checkpoint_seconds", 0)
    last = tmp_path / "killed" / "seed-0" / "last.ckpt"
    try:
        while victim.poll() is None:
            time.sleep(0.01)
            if last.exists() and _place(last)[0] >= 2 and 0 < _place(last)[1] < 6:
                break
    finally:
        victim.send_signal(signal.SIGKILL)
        shown, _ = victim.communicate()
    epoch, _ = _place(last)
    assert epoch >= 2 and victim.returncode == -signal.SIGKILL, shown
    words[-1] = str(epoch + 2)
    run(*words, "--out", tmp_path / "killed", "--resume", "true")
    run(*words, "--out", tmp_path / "whole")
    killed, whole = (measures(record_of(tmp_path / name)) for name in ("killed", "whole"))
    np.testing.assert_allclose(killed, whole, atol=2e-5)


def test_a_finished_epoch_goes_on_with_the_next(run, arguments, tmp_path):
    for folder, epochs in (("parts", 2), ("parts", 4), ("parts", 4), ("whole", 4)):
        words = ["--trainer.max_epochs", epochs, "--out", tmp_path / folder, "--resume", "true"]
        run(*arguments, *words)
    parts, whole = (measures(record_of(tmp_path / name)) for name in ("parts", "whole"))
    np.testing.assert_allclose(parts, whole, atol=2e-5)


def _place(checkpoint: Path) -> tuple[int, int]:
    """The epoch that goes on from a checkpoint, and how many of its batches were read."""
    state = torch.load(checkpoint, weights_only=True)["TaskData"]
    return state["epoch"], state["given"]


def test_ctrl_c_says_how_to_go_on(arguments, tmp_path):
    words = [*arguments, "--out", tmp_path, "--trainer.max_epochs", "10000"]
    process = start(*words, "--data.workers", 1)
    while process.poll() is None and not (tmp_path / "seed-0" / "record.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert f"Interrupted. What there is lies in {tmp_path / 'seed-0'}" in shown
    assert "--resume true" in shown and "Traceback" not in shown
    assert not record_of(tmp_path)["training"]["finished"]
    assert len(torch.load(tmp_path / "seed-0" / "last.ckpt", weights_only=True)["state_dict"]) > 5


def test_seeds_run_one_by_one_and_are_summed_up(run, arguments, tmp_path):
    words = [*arguments, "--out", tmp_path, "--trainer.max_epochs", 1, "--seeds", 1, 2]
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    accuracies = [record_of(tmp_path, seed)["test"]["accuracy"] for seed in (1, 2)]
    assert summary["seeds"] == [1, 2] and summary["accuracies"] == accuracies
    assert summary["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert record_of(tmp_path, 1)["config"]["model"]["seed"] == 1
    before = (tmp_path / "seed-1" / "record.json").stat().st_mtime_ns
    with pytest.raises(SystemExit):
        run(*words, "--resume", "true")  # nothing is left to do
    assert (tmp_path / "seed-1" / "record.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.settings.folder", "nowhere"], "lra_listops: folder must be, or contain"),
        (["--data.task", "nothing"], "load: name must be one of"),
        (["--data.settings.colour", "red"], "data.settings of task lra-listops: .*colour"),
        (["--model.mixer", "nothing"], "network_for: mixer must be one of"),
    ],
)
def test_errors_are_one_message(run, arguments, tmp_path, words, message):
    with pytest.raises(SystemExit, match=f"train: .*{message}"):
        run(*arguments, "--out", tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_wrong_key_and_help(run, arguments, capsys):
    with pytest.raises(SystemExit):
        run(*arguments, "--model.wide", 3)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ") and "--model.wide" in line
    with pytest.raises(SystemExit) as ended:
        run("fit", "--help")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("seeds", "resume", "model.protocol", "data.batch_size", "trainer.devices"):
        assert f"--{word}" in shown


def test_out_of_memory_says_the_batch(run, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *_, **__: torch.empty(2**50))
    with pytest.raises(SystemExit, match=r"out of memory at a batch of 16 samples of length \d+"):
        run(*arguments, "--out", tmp_path)


def test_every_configuration_is_understood(monkeypatch):
    names = runpy.run_path(str(SCRIPT), run_name="train")

    class ParseOnly(names["TrainCli"]):
        def before_instantiate_classes(self):
            raise _ParsedError(self)

    monkeypatch.setitem(names["main"].__globals__, "TrainCli", ParseOnly)
    configs = SCRIPT.with_name("configs")
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(configs / "image.yaml")])
    with pytest.raises(_ParsedError) as parsed:
        names["main"]()
    [cli] = parsed.value.args
    for path in sorted(configs.glob("*.yaml")):
        words = ["--config", str(configs / "image.yaml"), "--config", str(path)]
        config = cli.parser.parse_args(["fit", *words]).fit
        assert config.model.width > 0 and config.data.full_length in (True, False)


class _ParsedError(Exception):
    pass
