"""scripts/tuning: what is said of CUDA kernels that do not run here."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from tuning import resources  # noqa: E402

REPORT = """\
ptxas info    : Compiling entry function '_ZN9paramixer4cuda10mix_kernelIfiLi4ELb1EEEv' for 'sm_90'
ptxas info    : Function properties for _ZN9paramixer4cuda10mix_kernelIfiLi4ELb1EEEv
    0 bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 16 bytes smem, 728 bytes cmem[0]
"""


def entry(tmp_path, registers=42, spills=0):
    report = tmp_path / "kernels.cu.o.resources"
    report.write_text(REPORT.format(registers=registers, spills=spills))
    (found,) = resources.read(report)
    return found


def test_the_report_of_ptxas_is_read(tmp_path):
    found = entry(tmp_path)
    assert (found.kernel, found.architecture) == ("mix_transpose f32 x4 32-bit", "sm_90")
    assert (found.registers, found.shared, found.spills()) == (42, 16, False)
    assert entry(tmp_path, spills=8).spills()


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [
        (32, 256, 0, 8),  # all 2048 threads
        (33, 256, 0, 6),  # 40 registers: 51 warps, 12 on each scheduler
        (128, 256, 0, 2),
        (129, 256, 0, 1),
        (255, 1024, 0, 0),
        (32, 256, 113 * 1024 - 16, 2),  # and 1 KiB more each
        (32, 256, 113 * 1024 - 15, 1),
        (16, 32, 0, 32),
    ],
)
def test_occupancy(tmp_path, registers, threads, shared, blocks):
    launch = {"threads": threads, "shared": shared}
    found = resources.occupancy(entry(tmp_path, registers), launch)
    assert found == (blocks, round(100 * blocks * threads / 2048))


def test_the_table_is_read_as_it_was_written_and_shows_changes(tmp_path):
    launches = {"single": {"threads": 256, "shared": 0}}
    rows = resources.table([entry(tmp_path)], launches)
    assert resources.parse(resources.write(rows, "13.0")) == (rows, "13.0")
    assert resources.changes(rows, rows) == []
    more = resources.table([entry(tmp_path, 48)], launches)
    (change,) = resources.changes(rows, more)
    assert change.endswith("sm_90: 42, 62 % in the table, 48, 62 %")
    # A build for fewer architectures says nothing of the others.
    assert resources.changes({k: {**row, "sm_80": "1, 1 %"} for k, row in rows.items()}, rows) == []
    assert resources.changes(rows, {**rows, "new": {}}) == ["new is not in the table"]


def test_the_committed_table_has_every_architecture():
    rows, _ = resources.parse((SCRIPTS.parent / "cuda" / "resources.md").read_text())
    assert len(rows) >= 100
    for row in rows.values():
        assert list(row) == ["threads", "shared", "sm_80", "sm_90", "sm_100", "sm_120"]
