import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from paramixer import tasks
from paramixer.training import MIXERS, data_for

SCRIPTS = Path(__file__).parents[3] / "scripts"
STUDIES = sorted((SCRIPTS / "configs" / "study").glob("*.yaml"))
TINY = {
    "tasks": {
        "adding-32": {
            "cpu_seconds": 0.01,
            "stop_above": 2.0,
            "files": ["base.yaml"],
            "data": {"task": "adding", "settings": {"length": 32, "counts": [40, 20, 20]}},
        }
    },
    "models": {
        "chord": None,
        "broken": {"model": {"mixer": "nothing"}},
    },
}


@pytest.fixture(scope="module")
def script():
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "study.py"), run_name="study"))


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    base = {"data": {"batch_size": 8}, "model": {"width": 8, "pooling": "flatten"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return path


def command(path, *words):
    folders = ["--runs", path.with_name("runs"), "--results", path.with_name("results")]
    return [str(word) for word in (SCRIPTS / "study.py", path, *folders, *words)]


def test_one_record_a_run_and_none_twice(script, tiny, monkeypatch, capsys):
    done = subprocess.run(
        [sys.executable, *command(tiny, "--workers", 2)], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "adding-32/chord/seed-0  done" in done.stdout
    assert "study: failed: tiny/adding-32/broken/seed-0; see log.txt" in done.stderr
    log = (tiny.parent / "runs/tiny/adding-32/broken/seed-0/log.txt").read_text()
    assert "mixer must be one of" in log
    [path] = tiny.with_name("results").rglob("record.json")
    record = json.loads(path.read_text())
    plan = yaml.safe_load((tiny.parent / "runs/tiny/adding-32/chord/seed-0.yaml").read_text())
    assert path.parent == tiny.parent / "results/tiny/adding-32/chord/seed-0"
    assert record["model"] == "chord" and record["task"]["length"] == 32
    # 0.01 s are some 10 steps, 2 epochs of 5 steps: validated 10 times
    assert record["training"]["steps"] == plan["trainer"]["max_steps"] >= script.VALIDATIONS
    assert plan["trainer"]["callbacks"][0]["init_args"]["stopping_threshold"] == 2.0
    monkeypatch.setattr(sys, "argv", command(tiny, "--only", "*/chord"))
    script.main()
    assert capsys.readouterr().out == "1 of 1 runs have a record\n"


def test_patterns_choose_runs_and_their_order(script, tiny):
    runs = list(script.runs_of(TINY | {"seeds": [1, 2]}, tiny, Path("runs")))
    names = [run.name for run in script.in_order(runs, ["*/b*", "adding-*/*"])]
    of_model = {m: [f"tiny/adding-32/{m}/seed-{s}" for s in (1, 2)] for m in ("chord", "broken")}
    assert names == of_model["broken"] + of_model["chord"]
    assert script.in_order(runs, ["chord"]) == []


def test_the_schedule_fits_the_budget(script):
    few = script.schedule(10.0, per_step=0.1, batches=30)
    assert few["max_steps"] == 100 and few["val_check_interval"] == 10
    assert script.schedule(10.0, per_step=0.09, batches=30)["max_steps"] == 110  # of 111
    assert script.schedule(10.0, per_step=0.1, batches=10) == {"max_epochs": 10}
    assert script.schedule(10.0, per_step=0.1, batches=3) == {"max_epochs": 33}


def test_seeds_share_a_schedule(script, tmp_path, monkeypatch):
    speeds = iter([0.1, 0.2])  # the second is never asked for
    monkeypatch.setitem(script.steps_of.__globals__, "measure", lambda run: (next(speeds), 10))
    runs = [script.Run(f"study/task/model/seed-{seed}", 10.0, {}) for seed in (0, 1)]
    path = tmp_path / "steps.yaml"
    assert [script.steps_of(run, path) for run in runs] == 2 * [{"max_epochs": 10}]


def test_what_is_no_study_is_refused(script, tiny, monkeypatch):
    monkeypatch.setattr(sys, "argv", command(tiny))
    tiny.write_text("models: {}")
    with pytest.raises(SystemExit, match=r"study: .*tiny.yaml is no study: KeyError\('tasks'\)"):
        script.main()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_name_tasks_and_models(script, path):
    runs = list(script.runs_of(yaml.safe_load(path.read_text()), path, Path("runs")))
    assert len({run.name for run in runs}) == len(runs) > 0
    for run in runs:
        assert run.settings["data"]["task"] in tasks.names()
        assert run.settings["data"]["batch_size"] > 0 and run.cpu_seconds > 0
        assert run.settings["model"]["mixer"] in MIXERS
        assert run.settings.keys() == {"data", "model", "trainer", "name", "seeds", "out"}


def test_a_variant_may_look_like_a_number(monkeypatch):
    def load(name, **settings):
        raise OSError(f"no files of {settings}")

    monkeypatch.setattr(tasks, "load", load)
    with pytest.raises(OSError, match="{'folder': 'data', 'variant': '64'}"):
        data_for("mini-listops", 8, settings={"folder": "data", "variant": 64})
