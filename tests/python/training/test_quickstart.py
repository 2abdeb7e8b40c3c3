import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paramixer import reference
from paramixer.tasks import sequential_mnist
from torch.utils.data import TensorDataset

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """The script's names, with few digits and a small chain so that all of it runs in seconds."""
    digits = sequential_mnist.load()
    few = sequential_mnist.Splits(*(TensorDataset(*part[::100]) for part in digits))
    monkeypatch.setattr(sequential_mnist, "load", lambda: few)
    names = runpy.run_path(str(SCRIPTS / "quickstart.py"), run_name="quickstart")
    chain = names["Chain"](batch=2, length=16, channels=4, factors=3, repeats=1)
    names["main"].__globals__["Chain"] = lambda: chain
    return SimpleNamespace(**names)


def run(script, monkeypatch, out, *options):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--out", str(out), *options])
    status = script.main()
    return status, json.loads((out / "record.json").read_text())


def test_whole_job_can_be_run_again(script, monkeypatch, tmp_path, capsys):
    for _ in range(2):
        status, record = run(script, monkeypatch, tmp_path, "--epochs", "1", "--seed", "3")
    assert status == 1  # 35 digits teach too little, and the job says so
    assert "order-free floor" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == set(script.FILES)
    assert record["config"]["seed"] == 3 and record["training"]["finished"]
    assert len(record["training"]["curve"]) == 1
    low, high = record["test"]["interval"]
    assert low <= record["test"]["accuracy"] <= high
    assert record["mixing"]["speed_up"] > 0
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    model = script.build(script.Config(**record["config"]))
    weights = {name.removeprefix("model."): w for name, w in checkpoint["state_dict"].items()}
    model.load_state_dict(weights)


@pytest.mark.parametrize("batches", [1, 5])  # within the first epoch of two batches, and later
def test_interruption_keeps_what_there_is(script, monkeypatch, tmp_path, batches):
    left = iter(range(batches))

    def interrupt(x):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr(sequential_mnist, "distort", interrupt)
    status, record = run(script, monkeypatch, tmp_path, "--epochs", "4")
    assert status == script.INTERRUPTED
    assert not record["training"]["finished"] and "accuracy" in record["test"]
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == set(script.FILES) - (set() if batches > 2 else {"curve.png"})


def test_published_form_is_the_same_product(script):
    weight = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    offsets = [0, 3, -9]
    published = script.published_mix(7, offsets)(weight, value)
    expected = reference.mix(weight, value, offsets)
    torch.testing.assert_close(published, expected)
    grad = torch.randn_like(value)
    for ours, theirs in zip(
        torch.autograd.grad(published, (weight, value), grad),
        torch.autograd.grad(expected, (weight, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_both_timed_forms_give_the_same_result(script):
    timed = script.time_mixing(script.Chain(batch=1, length=33, channels=3, factors=4, repeats=1))
    assert timed["relative_difference"] < 1e-5


def test_recorded_seeds_reach_what_is_promised(script):
    records = [
        json.loads(path.read_text())
        for path in sorted((SCRIPTS / "benchmarks" / "results").glob("quickstart-seed*.json"))
    ]
    assert [record["config"]["seed"] for record in records] == [0, 1, 2]
    for record in records:
        seed = record["config"]["seed"]
        defaults = script.Config(seed, script.EPOCHS)
        assert script.Config(**record["config"]) == defaults
        assert record["test"]["floors"] == sequential_mnist.floors()
    assert sum(record["test"]["accuracy"] for record in records) / 3 >= 0.95
