"""scripts/benchmark.py through its command line, on shapes that take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
EAGER_PEERS = ["paramixer", "torch.sparse CSR", "torch.roll", "gather-scatter_add"]
COMPILED = "torch.compile(roll)"


def run(tmp_path, *options, environment=None):
    """The printed text and the JSON document of a run that must succeed."""
    path = tmp_path / "figures.json"
    options = [*options, "--rounds", "1", "--budget", "0.001", "--json", path]
    command = [sys.executable, SCRIPT, *map(str, options)]
    environment = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_peers_agree_and_are_timed_under_both_allocators(tmp_path):
    options = ["--shapes", "2,33,5", "1,8,3", "--peers", *EAGER_PEERS, "--markdown"]
    text, document = run(tmp_path, *options)

    results = document["results"]
    cases = {(tuple(r["shape"]), r["protocol"]) for r in results}
    assert cases == {
        ((b, n, d), p) for b, n, d in [(2, 33, 5), (1, 8, 3)] for p in ("chord", "cdil")
    }
    for row in results:
        assert row["failure"] == ""
        assert row["calls"] >= 1
        assert row["min_ms"] <= row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["default_ms"] > 0
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_ms"] * 1e-6)
        assert row["peer"] == "copy" or row["error"] <= 1e-5
    for case in {r["case"] for r in results}:
        timed = {(r["peer"], r["operation"]) for r in results if r["case"] == case}
        both = {(p, o) for p in [*EAGER_PEERS, "copy"] for o in ("mix", "backward")}
        assert timed == both | {("paramixer", "mix_transpose"), ("paramixer", "link_dot")}
    row = next(r for r in results if (r["shape"], r["operation"]) == ([2, 33, 5], "backward"))
    assert row["bytes"] == 2 * 33 * (3 * 5 + 2 * len(row["offsets"])) * 4
    assert document["settings"]["allocator"]["MALLOC_MMAP_MAX_"] == "0"
    assert {"cpu", "cores", "threads", "cpu instruction set", "torch"} <= set(document["machine"])
    assert {"command", "date"} <= set(document)
    assert "gather-scatter_add" in text and "(2, 33, 5) CDIL K=3 m=3 of 6" in text


def test_what_a_peer_cannot_do_is_reported_instead_of_timed(tmp_path):
    options = ["--shapes", "2,16,4", "--protocols", "cdil", "--factors", "1", "--dtype", "bfloat16"]
    options += ["--one-allocator", "--markdown", "--peers", *EAGER_PEERS, COMPILED]
    text, document = run(tmp_path, *options, environment={"TORCHDYNAMO_DISABLE": "1"})

    failures = {row["peer"]: row["failure"] for row in document["results"] if row["failure"]}
    assert set(failures) == {"torch.sparse CSR", COMPILED}
    assert "fell back to eager" in failures[COMPILED]
    assert all(failure in text for failure in failures.values())
    assert {row["calls"] for row in document["results"] if row["failure"]} == {0}
    assert "default_ms" not in document["results"][0]


@pytest.mark.slow
def test_compiled_peer_agrees(tmp_path):
    options = ["--shapes", "2,33,5", "--factors", "middle", "--one-allocator", "--peers", COMPILED]
    _, document = run(tmp_path, *options)

    errors = [row["error"] for row in document["results"] if row["peer"] == COMPILED]
    assert len(errors) == 4
    assert max(errors) <= 1e-5
