"""scripts/gpu_check.sh where there is no GPU: with programs that only say how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ["gpu_check.sh", "environment.sh", "benchmarks/predictions.md"]
STEPS = ["configure", "package", "kernel-tests", "kernels", "resources", "pytest"]
STEPS += ["memcheck", "racecheck", "initcheck", "synccheck", "sweep", "counters"]
STEPS += [
    f"benchmark-{level}-{dtype}"
    for level in ("chain", "factor", "rotation", "layer")
    for dtype in ("bfloat16", "float32")
]

STUBS = {
    "nvidia-smi": """
        case "$*" in
          -L) echo "GPU 0: a GPU that is none" ;;
          *compute_cap*) echo 9.0 ;;
          *) echo "a GPU that is none, 1, 2, 3" ;;
        esac""",
    "cmake": """
        case "$*" in
          *cuda_kernel_test*) mkdir -p build/gpu/tests/cuda
            cp "$STUBS/kernel_test" build/gpu/tests/cuda/cuda_kernel_test ;;
        esac""",
    "python": """
        case "$*" in
          *sysconfig*) echo "$STUBS" ;;
          *paramixer.info*) echo "cuda kernels  usable on a GPU that is none (sm_90)" ;;
          *xdist*) exit 1 ;;
        esac""",
    **dict.fromkeys(["ctest", "ninja", "nvcc", "compute-sanitizer", "ncu", "kernel_test"], ""),
}


@pytest.fixture
def check(tmp_path):
    """check(*arguments, fail="word", ..) in a copy of the scripts: exit code, calls, report."""
    scripts, stubs = tmp_path / "root" / "scripts", tmp_path / "stubs"
    for name in COPIED:
        (scripts / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, scripts / name)
    stubs.mkdir()
    for name, body in STUBS.items():
        stub = stubs / name
        # Every program records its call, and fails where the test wants that.
        record = f'echo "{name} $*" >>"$CALLS"\n'
        fail = f'case "{name} $*" in *"${{FAIL:-nothing}}"*) echo "broken"; exit 3 ;; esac\n'
        stub.write_text(f"#!/bin/bash\n{record}{fail}{body}\nexit 0\n")
        stub.chmod(0o755)

    def run(*arguments, fail="", gpu=True, **more):
        calls = tmp_path / "calls"
        calls.write_text("")
        (stubs / "nvidia-smi").chmod(0o755 if gpu else 0o644)
        own = {"STUBS": stubs, "CALLS": calls, "FAIL": fail or "nothing at all", **more}
        own |= {"PARAMIXER_PYTHON": stubs / "python", "PATH": f"{stubs}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", scripts / "gpu_check.sh", *arguments],
            env=os.environ | {name: str(value) for name, value in own.items()},
            capture_output=True,
            text=True,
        )
        report = scripts.parent / "runs" / "gpu_check" / "report.md"
        text = report.read_text() if report.exists() else ""
        return done.returncode, calls.read_text(), text, done.stderr

    return run


def results(report):
    """What the report says of every step."""
    lines = [line.strip("| ").split(" | ") for line in report.splitlines() if " s |" in line]
    return {name: result for name, result, _ in lines}


def test_without_a_gpu_nothing_is_checked(check):
    code, calls, report, errors = check(gpu=False)
    assert (code, calls, report) == (2, "", "")
    assert "no NVIDIA GPU here" in errors


def test_unknown_parts_are_refused(check):
    code, _, _, errors = check("everything")
    assert code == 2 and "gpu_check.sh [--again] [--out FOLDER] [PART ..]" in errors


def test_every_part_makes_one_report(check):
    code, calls, report, errors = check()
    assert code == 0, errors
    assert results(report) == dict.fromkeys(STEPS, "passed")
    assert list(results(report)) == STEPS
    assert "usable on a GPU that is none" in report and "# Predicted times" in report
    assert "-DPARAMIXER_CUDA_ARCHITECTURES=90-real" in calls
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"compute-sanitizer --tool {tool} --error-exitcode 1" in calls
    assert "pytest -p no:cacheprovider -k cuda" in calls
    assert "scripts/benchmark.py chain --device cuda --dtypes bfloat16" in calls


def test_a_failed_step_stops_no_other_and_is_repeated(check):
    code, _, report, _ = check(fail="--tool racecheck")
    assert code == 1
    assert results(report) == {**dict.fromkeys(STEPS, "passed"), "racecheck": "**FAILED**"}
    assert "## racecheck failed\n\n```\nbroken" in report
    code, calls, report, _ = check("tests", "sanitize")
    assert code == 0 and results(report) == dict.fromkeys(STEPS, "passed")
    assert "racecheck" in calls and "memcheck" not in calls and "pytest" not in calls
    _, calls, _, _ = check("--again", "sanitize")
    assert "memcheck" in calls


def test_what_has_no_time_waits_for_the_next_call(check):
    assert check("build")[0] == 0
    code, calls, report, _ = check("tests", GPU_CHECK_SECONDS=0)
    assert code == 1 and "pytest -p" not in calls
    assert results(report)["pytest"] == "not run: the time was up"
    assert check("tests")[0] == 0


def test_without_tests_to_build_the_package_is_built(check):
    code, calls, report, _ = check("build", fail="-DPARAMIXER_TESTS=ON")
    assert code == 1
    assert results(report) == {
        "configure": "**FAILED**",
        "package": "passed",
        "kernel-tests": "passed",
    }
    assert "-DPARAMIXER_TESTS=OFF" in calls and "PARAMIXER_GOOGLETEST" in report
