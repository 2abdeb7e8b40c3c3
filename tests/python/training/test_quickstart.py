import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paramixer.tasks import sequential_mnist
from paramixer.training import learner_for

SCRIPTS = Path(__file__).parents[3] / "scripts"
FEW = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the store is made once."""
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture
def script(monkeypatch, folder):
    """The script's names, with few batches and a small chain so that all of it runs in seconds."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = runpy.run_path(str(SCRIPTS / "quickstart.py"), run_name="quickstart")

    def few(seed, epochs):
        config = names["settings"](seed, epochs)
        return config | {"trainer": config["trainer"] | FEW}

    within = names["main"].__globals__
    within |= {"settings": few, "CHAIN": replace(names["CHAIN"], shape=(2, 16, 4))}
    return SimpleNamespace(**names)


def run(script, monkeypatch, out, *options):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--out", str(out), *options])
    status = script.main()
    return status, json.loads((out / "record.json").read_text())


def test_whole_job_can_be_run_again(script, monkeypatch, tmp_path, capsys):
    for _ in range(2):
        status, record = run(script, monkeypatch, tmp_path, "--epochs", "1", "--seed", "3")
    assert status == 1  # two batches teach too little, and the job says so
    shown = capsys.readouterr().out
    assert "order-free floor" in shown and "nearest neighbour" in shown
    assert "95 % interval" in shown and "times as fast as published" in shown
    assert {path.name for path in tmp_path.iterdir()} == set(script.FILES)
    assert record["seed"] == 3 and record["training"]["finished"]
    assert len(record["training"]["epochs"]) == 1
    low, high = record["test"]["interval"]
    assert low <= record["test"]["accuracy"] <= high and record["test"]["count"] == 32
    kinds = {(row["peer"], row["operation"]) for row in record["mixing"]}
    assert kinds == {(form, name) for form in script.FORMS for name in script.CHAIN.operations}
    assert all(row["error"] < 1e-5 and row["median_ms"] > 0 for row in record["mixing"])
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    task = sequential_mnist.sequential_mnist()
    learner_for(task, **record["config"]["model"]).load_state_dict(checkpoint["state_dict"])


@pytest.mark.parametrize("epochs", [0, 2])
def test_interruption_keeps_what_there_is(script, monkeypatch, tmp_path, epochs):
    left = iter(range(2 * epochs + 1))  # batches

    def interrupt(x, draws):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr(sequential_mnist, "distort", interrupt)
    status, record = run(script, monkeypatch, tmp_path, "--epochs", "4")
    assert status == script.INTERRUPTED
    assert not record["training"]["finished"] and "test" not in record
    assert len(record["training"]["epochs"]) == epochs
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == ({"record.json", "best.ckpt", "curve.png"} if epochs else {"record.json"})


def test_recorded_seeds_reach_what_is_promised(script):
    records = [
        json.loads(path.read_text())
        for path in sorted((SCRIPTS / "benchmarks" / "results").glob("quickstart-seed*.json"))
    ]
    assert [record["seed"] for record in records] == [0, 1, 2]
    floors = sequential_mnist.sequential_mnist().floors
    for record in records:
        assert record["config"] == script.settings(record["seed"], script.EPOCHS)
        assert record["task"]["floors"] == floors
    assert sum(record["test"]["accuracy"] for record in records) / 3 >= 0.95
