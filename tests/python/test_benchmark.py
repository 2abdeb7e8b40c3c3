"""scripts/benchmark.py through its command line, on shapes that take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "benchmark.py"
EAGER_PEERS = ["paramixer", "torch.sparse CSR", "torch.roll", "gather-scatter_add"]
COMPILED = "torch.compile(roll)"
ATTENTION = "attention (another function)"


@pytest.fixture
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def run(tmp_path, level, *options, environment=None):
    """The printed text and the JSON document of a run that must succeed."""
    path = tmp_path / "figures.json"
    options = [level, *options, "--rounds", "1", "--budget", "0.001", "--json", path]
    command = [sys.executable, SCRIPT, *map(str, options)]
    environment = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def check_order(row):
    assert row["failure"] == ""
    assert row["calls"] >= 1
    assert row["min_ms"] <= row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]


def check_times(row):
    check_order(row)
    if row["peer"] not in ("torch.mm", ATTENTION):
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_ms"] * 1e-6, rel=1e-3)
        assert row["peer"] == "copy" or row["error"] <= 1e-5


def test_factor_peers_agree_and_are_timed_under_both_allocators(tmp_path):
    peers = [*EAGER_PEERS, "mix_backward"]
    options = ["--shapes", "2,33,5", "1,8,3", "--peers", *peers, "--markdown"]
    text, document = run(tmp_path, "factor", *options)

    results = document["results"]
    cases = {(tuple(r["shape"]), r["protocol"]) for r in results}
    assert cases == {
        ((b, n, d), p) for b, n, d in [(2, 33, 5), (1, 8, 3)] for p in ("chord", "cdil:3")
    }
    for row in results:
        check_times(row)
        assert row["default_ms"] > 0
    for case in {r["case"] for r in results}:
        timed = {(r["peer"], r["operation"]) for r in results if r["case"] == case}
        both = {(p, o) for p in [*EAGER_PEERS, "copy"] for o in ("forward", "backward")}
        ours = {("paramixer", "mix_transpose"), ("paramixer", "link_dot")}
        assert timed == both | ours | {("mix_backward", "backward"), ("torch.mm", "probe")}
    row = next(r for r in results if (r["shape"], r["operation"]) == ([2, 33, 5], "backward"))
    assert row["bytes"] == 2 * 33 * (3 * 5 + 2 * len(row["offsets"])) * 4
    assert row["multiply_adds"] == 2 * 2 * 33 * 5 * len(row["offsets"])
    assert document["settings"]["allocator"]["MALLOC_MMAP_MAX_"] == "0"
    assert {"cpu", "cores", "threads", "cpu instruction set", "torch"} <= set(document["machine"])
    assert {"command", "date"} <= set(document)
    assert "gather-scatter_add" in text and "(2, 33, 5) CDIL K=3 m=3 of 6" in text


def test_what_a_peer_cannot_do_is_reported_instead_of_timed(tmp_path):
    options = ["--shapes", "2,16,4", "--protocols", "cdil", "--factors", "1", "--one-allocator"]
    options += ["--dtypes", "bfloat16", "--markdown", "--peers", *EAGER_PEERS, COMPILED]
    text, document = run(tmp_path, "factor", *options, environment={"TORCHDYNAMO_DISABLE": "1"})

    failures = {row["peer"]: row["failure"] for row in document["results"] if row["failure"]}
    assert set(failures) == {"torch.sparse CSR", COMPILED}
    assert "fell back to eager" in failures[COMPILED]
    assert all(failure in text for failure in failures.values())
    assert {row["calls"] for row in document["results"] if row["failure"]} == {0}
    assert "default_ms" not in document["results"][0]


@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
def test_chain_peers_agree(tmp_path, residual):
    peers = [*EAGER_PEERS, "sequence of mix", ATTENTION]
    options = ["--shapes", "2,33,5", "--residual", residual, "--peers", *peers, "--no-memory"]
    _, document = run(tmp_path, "chain", *options, "--one-allocator")

    results = document["results"]
    for row in results:
        check_times(row)
    timed = {(r["protocol"], r["peer"], r["operation"]) for r in results}
    operations = ("forward", "forward+backward")
    expected = {
        (c, p, o) for c in ("chord", "cdil:3") for p in [*peers, "copy"] for o in operations
    }
    assert timed == expected | {(c, "torch.mm", "probe") for c in ("chord", "cdil:3")}
    row = next(r for r in results if (r["protocol"], r["operation"]) == ("cdil:3", operations[1]))
    assert row["bytes"] == 2 * 33 * (5 * 5 + 3 * 6 * 3) * 4
    assert row["multiply_adds"] == 3 * 2 * 33 * 5 * 6 * 3


def test_chains_are_timed_with_and_without_huge_pages(tmp_path):
    options = ["--shapes", "1,16,4", "--protocols", "cdil:3", "--no-memory", "--markdown"]
    text, document = run(tmp_path, "chain", *options, "--peers", "paramixer", "torch.roll")

    for row in document["results"]:
        assert row["default_ms"] > 0
        for name in ("huge_pages_ms", "small_pages_ms"):
            assert (name in row) == (row["peer"] == "paramixer")
    assert "4 KiB pages" in text


def test_rotation_peers_agree(tmp_path):
    peers = ["paramixer", "torch.roll and cat"]
    options = ["--shapes", "2,33,14", "1,8,8", "--one-allocator", "--markdown"]
    text, document = run(tmp_path, "rotation", *options)

    for row in document["results"]:
        check_times(row)
    timed = {(r["case"], r["peer"], r["operation"]) for r in document["results"]}
    cases = ("(2, 33, 14) T=7", "(1, 8, 8) T=4")
    operations = ("forward", "forward+backward")
    expected = {(c, p, o) for c in cases for p in (*peers, "copy") for o in operations}
    assert timed == expected | {(c, "torch.mm", "probe") for c in cases}
    row = next(r for r in document["results"] if r["operation"] == "forward+backward")
    assert row["bytes"] == 2 * 33 * 14 * 4 * 4
    assert row["peak_mib"] >= 0
    assert cases[0] in text


def test_memory_is_measured_and_runs_are_compared(tmp_path):
    options = ["--shapes", "4,2048,64", "--protocols", "cdil:3", "--one-allocator", "--markdown"]
    options += ["--peers", "paramixer", "gather-scatter_add"]
    _, document = run(tmp_path, "chain", *options, "--plot", tmp_path / "roofline.png")

    peaks = {(r["peer"], r["operation"]): r.get("peak_mib") for r in document["results"]}
    result = 4 * 2048 * 64 * 4 / 2**20  # MiB
    assert result <= peaks["paramixer", "forward"] + 0.1
    # The published form keeps the K gathered rows of each of the 11 factors for its backward.
    assert peaks["gather-scatter_add", "forward+backward"] > 3 * 11 * result
    assert peaks["paramixer", "forward+backward"] < peaks["gather-scatter_add", "forward+backward"]
    assert (tmp_path / "roofline.png").stat().st_size > 0

    stored = tmp_path / "figures.json"
    lines = stored.read_text().splitlines()
    assert sum('"case": ' in line for line in lines) == len(document["results"])
    text, again = run(tmp_path, "chain", "--read", stored, "--compare", stored, "--markdown")
    assert again == document
    assert "new / old" in text and "(1.00)" in text


def test_scaling_stops_peers_at_the_limit(tmp_path):
    options = ["--shapes", "1,8,4", "1,16,4", "1,32,4", "--limit-seconds", "1e-9", "--no-memory"]
    options += ["--peers", "paramixer", "torch.roll", "--plot", tmp_path / "scaling.png"]
    _, document = run(tmp_path, "scaling", *options)

    for row in document["results"]:
        if row["peer"] not in ("copy", "torch.mm"):
            assert row["failure"] == ("" if row["shape"][1] == 8 else "stopped: time")
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_mixers_at_equal_width_stop_at_the_limit(tmp_path):
    options = ["--shapes", "2,64,8", "2,128,8", "--limit-seconds", "1e-9", "--peers", "paramixer"]
    options += ["linformer", "--markdown", "--plot", tmp_path / "mixers.png"]
    text, document = run(tmp_path, "mixers", *options)

    rows = [row for row in document["results"] if row["peer"] != "torch.mm"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["failure"] == ("" if row["shape"][1] == 64 else "stopped: time")
        if not row["failure"]:
            check_order(row)
            assert row["peak_mib"] > 0
            assert "gfma_per_s" not in row  # of each other function
    assert "linformer" in text and "peak memory" in text
    assert (tmp_path / "mixers.png").stat().st_size > 0


def test_every_mixer_of_the_benchmark_runs(scripts_on_path):
    from benchmarking import mixers

    case = mixers.MixerCase((2, 16, 8), "float32", "cpu")
    inputs = case.inputs()
    for peer in mixers.MIXER_PEERS.values():
        for name, call in peer(case, inputs).items():
            results = call.run(call.prepare())
            first = results if name == "forward" else results[0]
            assert first.shape == case.shape
            assert first.isfinite().all()


def test_the_table_of_mixers_finds_what_they_cost(scripts_on_path):
    """The study and the benchmark know a mixer by one name."""
    from benchmarking import mixers

    study = SCRIPTS / "configs" / "study" / "mixers.yaml"
    assert yaml.safe_load(study.read_text())["models"].keys() == mixers.MIXERS.keys()


def test_an_allocation_beyond_the_limit_fails_alone(tmp_path):
    options = ["--shapes", "16,16384,64", "--protocols", "cdil:9", "--factors", "1"]
    options += ["--peers", "paramixer", "gather-scatter_add", "--operations", "forward"]
    _, document = run(tmp_path, "factor", *options, "--one-allocator", "--limit-gib", "1")

    failures = {row["peer"]: row["failure"] for row in document["results"]}
    assert failures["gather-scatter_add"] == "failed: out of memory"
    assert failures["paramixer"] == ""


def test_published_networks_are_the_same_function(scripts_on_path):
    from benchmarking import layers

    for configuration in layers.LAYERS:
        case = configuration.small()
        inputs = case.inputs()
        expected = case.expected(inputs)["forward"][0]
        for peer in layers.LAYER_PEERS.values():
            calls = peer(case, inputs)
            assert set(calls) == set(case.operations)
            result = calls["forward"].run(calls["forward"].prepare())
            torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
            losses = [calls["step"].run(calls["step"].prepare()) for _ in range(3)]
            assert torch.stack(losses).isfinite().all()


def test_published_parameter_counts(scripts_on_path):
    """Those of the published code, without the tables that it saves and does not use."""
    from benchmarking import layers

    counts = [sum(p.numel() for p in case.model().parameters()) for case in layers.LAYERS]
    assert counts == [384_952, 151_101, 394_500 - 4097 * 32, 56_599 - 1025 * 32]


def test_triton_kernel_on_its_interpreter():
    pytest.importorskip("triton")
    program = """
import torch, paramixer
from benchmarking import triton_mix
weight, value = torch.randn(2, 70, 3), torch.randn(2, 70, 40)
offsets = [0, 5, -9]
reduced = torch.tensor([offset % 70 for offset in offsets], dtype=torch.int32)
result = triton_mix.mix(weight, value, reduced)
torch.testing.assert_close(result, paramixer.mix(weight, value, offsets))
"""
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["factor", "chain"])
def test_compiled_peer_agrees(tmp_path, level):
    options = ["--shapes", "2,33,5", "--factors", "middle", "--one-allocator", "--no-memory"]
    _, document = run(tmp_path, level, *options, "--peers", COMPILED)

    errors = [row["error"] for row in document["results"] if row["peer"] == COMPILED]
    assert len(errors) == 4
    assert max(errors) <= 1e-5
