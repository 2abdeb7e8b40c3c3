"""`paramixer.info.plan`: the passes of the CPU and CUDA kernels over a chain, in words."""

import os
import re
import subprocess
import sys

import pytest
import torch
from paramixer import info, links


def sweeps(text):
    """The sweeps, one line each."""
    return [line.strip() for line in text.split("\n")[1:]]


def test_a_dilated_protocol_over_a_power_of_two(capsys):
    text = info.plan(16384, 200, links.cdil(16384))
    assert capsys.readouterr().out == ""
    assert text.startswith("at most 128 of 200 channels at a time:\n")
    lines = sweeps(text)
    assert len(lines) == 7
    assert lines[0] == (
        "sweep 1: factors 0 and 1 together along the whole ring of 16384 rows; "
        "the result is dealt to 4 classes of 4096 rows"
    )
    assert lines[1].startswith("sweep 2: factors 2 and 3 together along each of 4 rings of 4096 ")
    assert lines[6] == "sweep 7: factors 12 and 13 together along each of 4096 rings of 4 rows"


def test_structure_is_found_from_the_offsets():
    mine = [[1 - 64, -1, 0], [2, 64, -2], [128, -4, 4], [8, 56, 640]]
    assert info.plan(64, 8, mine) == info.plan(64, 8, links.cdil(64, 4))


def test_an_odd_ring_has_one_class():
    lines = sweeps(info.plan(257, 8, links.cdil(257)))
    assert lines[0].endswith("; the result is dealt to the order of steps of 4")
    assert " along the whole ring of 257 rows in steps of 4" in lines[1]


@pytest.mark.parametrize(
    ("offsets", "residual"), [(links.chord(64), "none"), (links.cdil(64), "initial")]
)
def test_chains_that_stay_on_the_whole_ring(offsets, residual):
    text = info.plan(64, 8, offsets, residual)
    assert "dealt" not in text and "rings" not in text
    assert len(sweeps(text)) == 6


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float64, 64), (torch.float32, 128), (torch.bfloat16, 128), (torch.float16, 128)],
)
def test_channels_at_a_time(dtype, most):
    text = info.plan(64, 1000, links.cdil(64), dtype=dtype)
    assert text.startswith(f"at most {most} of 1000 channels at a time:")


def test_a_ring_of_one_row():
    assert sweeps(info.plan(1, 1, [[0]])) == ["sweep 1: factor 0 along the whole ring of 1 rows"]


def test_launches_on_cuda():
    """Tiles with halos while links are short, whole rings from then on; no GPU is needed."""
    text = info.plan(16384, 128, links.cdil(16384), device="cuda")
    assert text == (
        "2 launches:\n"
        "  launch 1: factors 0 to 4 in tiles of 16 channels and 512 of 16384 rows with halos of 31 "
        "rows\n"
        "  launch 2: factors 5 to 13 in tiles of 16 channels and all 512 rows, along each of 32 "
        "rings"
    )


_BANDS = (
    "2 launches:\n"
    "  launch 1: factors 0 to 4 as bands in tiles of 64 channels and 450 of 16384 rows with halos "
    "of 31 rows\n"
    "  launch 2: factors 5 to 13 as bands in tiles of 64 channels and all 512 rows, along each of "
    "32 rings"
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bands_on_cuda(dtype):
    assert info.plan(16384, 128, links.cdil(16384), dtype=dtype, device="cuda") == _BANDS
    for offsets, residual in ((links.chord(16384), "none"), (links.cdil(16384), "initial")):
        assert " as bands" not in info.plan(16384, 128, offsets, residual, dtype, "cuda")


_PRINT_PLAN = """
import torch
from paramixer import info, links
print(info.plan(16384, 128, links.cdil(16384), dtype=torch.bfloat16, device="cuda"), end="")
"""


@pytest.mark.parametrize("switch", ["on", "off", "0"])
def test_the_switch_of_bands(switch):
    process = subprocess.run(
        [sys.executable, "-c", _PRINT_PLAN],
        env={**os.environ, "PARAMIXER_CUDA_BANDS": switch},
        capture_output=True,
        text=True,
    )
    if switch == "0":
        assert "RuntimeError: PARAMIXER_CUDA_BANDS must be on or off (got 0)" in process.stderr
    else:
        assert process.returncode == 0, process.stderr
        assert process.stdout.startswith("2 launches:")
        assert (" as bands" in process.stdout) == (switch == "on")


@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [2, 509, 1000, 1024, 2000])
def test_short_rings_on_cuda_take_few_launches(length, dtype, residual):
    for offsets in (links.cdil(length), links.cdil(length, links=9)):
        assert len(sweeps(info.plan(length, 64, offsets, residual, dtype, "cuda"))) <= 3
    if residual != "initial" or length <= 1024:
        chord = sweeps(info.plan(length, 64, links.chord(length), residual, dtype, "cuda"))
        assert len(chord) == 1
        assert chord[0].endswith(f"and all {length} rows")


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.bfloat16, 32)])
def test_chord_on_a_long_ring_on_cuda(dtype, width):
    """One factor a launch; nearer links stay among rows that are on chip."""
    lines = sweeps(info.plan(16384, 128, links.chord(16384), "previous", dtype, "cuda"))
    assert lines == [
        f"launch {m + 1}: factor {m} in tiles of {width} channels and 497 of 16384 rows "
        "with windows of 1009 rows"
        for m in range(14)
    ]


@pytest.mark.parametrize("offsets", [links.chord(65536), links.cdil(64)])
def test_chains_that_are_single_products_on_cuda(offsets):
    length = 2 ** len(offsets)
    lines = sweeps(info.plan(length, 64, offsets, dtype=torch.float64, device="cuda"))
    expected = [f"launch {m + 1}: factor {m} as a product of its own" for m in range(len(offsets))]
    assert lines == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 8, [[0]]), ValueError, "plan: length must be at least 1 (got 0)"),
        ((8, 0, [[0]]), ValueError, "plan: channels must be at least 1 (got 0)"),
        ((8, 8, []), ValueError, "plan: offsets must hold at least one list"),
        ((8, 8, [[0, 1], [2]]), ValueError, "(got lists of [2, 1])"),
        ((8, 8, [[0] * 65]), ValueError, "at most 64 (got lists of [65])"),
        ((8, 8, [0, 1]), TypeError, "plan: offsets must be one list of integers per factor"),
        ((8, 8, [[0]], "all"), ValueError, "plan: residual must be one of"),
        ((8, 8, [[0]], "none", torch.int32), TypeError, "(got torch.int32)"),
        ((8, 8, [[0]], "none", torch.float32, "meta"), ValueError, "plan: device must be one of"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        info.plan(*arguments)
