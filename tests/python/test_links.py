import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramixer import links

TABLE = json.loads((Path(__file__).parent / "link_table.json").read_text())
PROTOCOLS = {"chord": links.chord, "cdil": links.cdil}


@pytest.mark.parametrize(
    "row", TABLE, ids=lambda r: f"{r['protocol']}-{r['length']}-{r['factors']}-{r['links']}"
)
def test_table(row):
    protocol = PROTOCOLS[row["protocol"]]
    factors, count = row["factors"], row["links"]
    expected = [row["offsets"][m * count : (m + 1) * count] for m in range(factors)]
    assert sum(map(len, expected)) == len(row["offsets"])
    assert protocol(row["length"], factors, count) == expected
    if row["defaults"]:
        assert protocol(row["length"]) == expected


def test_factors_do_not_change_chord_links():
    assert links.chord(1000, factors=3) == [[0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]] * 3


def test_factors_are_separate_lists():
    offsets = links.chord(8)
    offsets[0].append(9)
    assert offsets[1] == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: links.chord(0), "chord: length must be at least 1 (got 0)"),
        (lambda: links.chord(8, factors=0), "chord: factors must be at least 1 (got 0)"),
        (lambda: links.chord(8, links=0), "chord: links must be at least 1 and at most 64 (got 0)"),
        (
            lambda: links.chord(8, links=65),
            "chord: links must be at least 1 and at most 64 (got 65)",
        ),
        (lambda: links.cdil(-3), "cdil: length must be at least 1 (got -3)"),
        (
            lambda: links.cdil(8, factors=-1),
            "cdil: factors must be at least 1 and at most 63 (got -1)",
        ),
        (
            lambda: links.cdil(8, links=4),
            "cdil: links must be odd, at least 1 and at most 63 (got 4)",
        ),
        (
            lambda: links.cdil(8, links=65),
            "cdil: links must be odd, at least 1 and at most 63 (got 65)",
        ),
        (lambda: links.reach([[0, 1]], 0), "reach: length must be at least 1 (got 0)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("count", "most"), [(1, 63), (3, 63), (5, 62), (9, 61), (63, 59)])
def test_cdil_offsets_fit_into_64_bits(count, most):
    assert max(map(max, links.cdil(8, most, count))) < 2**63
    message = f"cdil: factors must be at least 1 and at most {most} (got {most + 1})"
    with pytest.raises(ValueError, match=re.escape(message)):
        links.cdil(8, most + 1, count)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: links.chord(8.0), "chord: length must be an integer (got 8.0)"),
        (lambda: links.chord(8, factors=1.5), "chord: factors must be an integer (got 1.5)"),
        (lambda: links.cdil(8, links="3"), "cdil: links must be an integer (got '3')"),
        (lambda: links.reach([[0, 1]], 8.0), "reach: length must be an integer (got 8.0)"),
        (
            lambda: links.reach([[0, 1.5]], 8),
            "reach: offsets must be one list of integers per factor (got [[0, 1.5]])",
        ),
        (
            lambda: links.reach([0, 1], 8),
            "reach: offsets must be one list of integers per factor (got [0, 1])",
        ),
    ],
)
def test_arguments_are_integers(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("offsets", "length", "expected"),
    [
        # Exactly log2 N for powers of two, fewer for others; K = 9 saves two factors.
        (links.chord(128), 128, 7),
        (links.chord(1024), 1024, 10),
        (links.chord(2000, 11), 2000, 10),
        (links.chord(1999, 11), 1999, 9),
        (links.chord(4097, 12, 13), 4097, 11),
        (links.chord(4097, 13, 14), 4097, 10),
        (links.chord(16385, 14, 15), 16385, 13),
        (links.cdil(1024, links=9), 1024, 8),
        (links.cdil(16384, links=9), 16384, 12),
        (links.cdil(1999, links=9), 1999, 8),
        (links.cdil(1024), 1024, 10),
        (links.chord(1024, factors=9), 1024, None),
        (links.cdil(1024, links=1), 1024, None),
        ([[0, 2], [0, 4]], 8, None),
        ([[0, 1, 2]], 3, 1),
        ([[-1, 7, 6]], 3, 1),
        ([], 5, None),
        ([[0]], 1, 0),
    ],
)
def test_reach(offsets, length, expected):
    assert links.reach(offsets, length) == expected


def test_reach_of_a_million_positions():
    assert links.reach(links.chord(2**20), 2**20) == 20


@given(
    st.integers(1, 24),
    st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=4), max_size=5),
)
def test_reach_counts_paths(length, offsets):
    reached = {0}
    expected = 0 if length == 1 else None
    for applied, factor in enumerate(offsets, start=1):
        reached = {(i + offset) % length for i in reached for offset in factor}
        if expected is None and len(reached) == length:
            expected = applied
    assert links.reach(offsets, length) == expected
