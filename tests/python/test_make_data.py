"""The command, in processes of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_data.py"
PATHFINDER = ("pathfinder", "--size", "32", "--difficulty", "hard", "--count", "2100")


def start(out, *arguments):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments, *(["--out", out] if out else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def run(out, *arguments):
    process = start(out, *arguments)
    text, _ = process.communicate()
    return process.returncode, text


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_listops_with_a_summary_and_samples(tmp_path):
    counts = ("--train", "300", "--validation", "20", "--test", "30")
    code, text = run(tmp_path, "listops", "--preset", "mini", *counts, "--operators", "MAX", "MIN")
    assert code == 0, text
    assert "350/350" in text and "basic_train.tsv" in text and "300" in text
    samples = [line for line in text.splitlines() if line.startswith("[M")]
    assert len(samples) == 3 and all(line[-4:-1] == " = " for line in samples)
    files = {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv", "made_by_paramixer.json"}
    assert set(contents(tmp_path / "listops-mini")) == files


def test_pathfinder_with_a_summary_and_pictures(tmp_path):
    code, text = run(tmp_path, *PATHFINDER[:-1], "30")
    assert code == 0, text
    assert "30/30" in text and "metadata/0.npy" in text and "@" in text
    assert "imgs/0/sample_2.png, label " in text


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_what_was_stopped_goes_on(tmp_path, stop, code):
    process = start(tmp_path / "a", *PATHFINDER)
    images = tmp_path / "a" / "pathfinder32" / "curv_contour_length_14" / "imgs"
    while not (images / "0").is_dir():  # the first of three batches
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(stop)
    text, _ = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before it could be stopped")
    assert process.returncode == code, text
    if stop == signal.SIGINT:
        assert "the same command goes on" in text and "Traceback" not in text

    for out in ("a", "b"):
        code, text = run(tmp_path / out, *PATHFINDER)
        assert code == 0, text
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not [path for path in (tmp_path / "a").rglob("*") if "partial" in path.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("listops", "--max-depth", "0"),
            r"make_data: listops: max_depth must be in 1 .. 255 (got 0)",
        ),
        (("listops", "--train", "-1"), "make_data: listops: train must be in"),
        (("pathfinder", "--count", "-5"), "make_data: pathfinder: count must be in"),
        (("pathfinder", "--seed", "-1"), "make_data: pathfinder: seed must be in"),
        (("pathfinder", "--size", "33"), "argument --size: invalid choice: 33"),
        (("chess",), "invalid choice: 'chess'"),
        (("listops", "--colour", "red"), "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_are_told(tmp_path, arguments, message):
    code, text = run(tmp_path, *arguments)
    assert code != 0 and message in text and "Traceback" not in text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("task", [(), ("listops",), ("pathfinder",)])
def test_help(task):
    code, text = run(None, *task, "--help")
    assert code == 0 and "usage: make_data.py" in text


def task_of_folder(tmp_path, *arguments):
    process = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
    )
    return process.returncode, process.stdout + process.stderr


def test_any_task_is_prepared_with_a_summary_and_samples(tmp_path):
    code, text = task_of_folder(tmp_path, "mini-digits")
    assert code == 0, text
    assert "1,200" in text and "397" in text and "floor: nearest neighbour 94" in text
    assert text.count("training sample") == 3 and "@" in text
    store = tmp_path / "data" / "paramixer-stores" / "mini-digits-mini.store"
    assert store.is_file()

    code, text = task_of_folder(tmp_path, "temporal-order", "--length", "64")
    assert code == 0 and "100,000" in text and "floor: any class 25.00 %" in text, text
    row = text.splitlines()[-1]
    assert len(row) == 64 and set(row) <= set("abcdXY")


def test_official_files_are_prepared(tmp_path):
    counts = ("--train", "300", "--validation", "20", "--test", "30")
    assert run(tmp_path, "listops", "--preset", "mini", *counts)[0] == 0
    folder = str(tmp_path / "listops-mini")
    code, text = task_of_folder(tmp_path, "lra-listops", "--folder", folder, "--variant", "s4")
    assert code == 0 and "350/?" in text and "<eos>" in text, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lra-text",), "required: --folder"),
        (("lra-text", "--folder", "."), "make_data: lra_text: folder must be, or contain"),
        (("mini-mnist", "--variant", "5"), "make_data: mini_mnist: variant must be one of"),
        (("floors", "lra-text"), "invalid choice: 'lra-text'"),
    ],
)
def test_mistakes_with_tasks_are_told(tmp_path, arguments, message):
    code, text = task_of_folder(tmp_path, *arguments)
    assert code != 0 and message in text and "Traceback" not in text
