"""What the generators in C++ take: arguments checked so that errors name them."""

from __future__ import annotations

import os
from typing import SupportsIndex

from paramixer._checks import check_integer

MOST_32 = 2**31 - 1
MOST_63 = 2**63 - 1


def check_range(function: str, name: str, value: SupportsIndex, least: int, most: int) -> int:
    """The value as an int; ValueError unless least <= value <= most, TypeError unless one."""
    number = check_integer(function, name, value)
    if not least <= number <= most:
        raise ValueError(f"{function}: {name} must be in {least} .. {most} (got {number})")
    return number


def check_run(
    function: str,
    seed: SupportsIndex,
    first: SupportsIndex,
    count: SupportsIndex,
    threads: SupportsIndex | None,
) -> tuple[int, int, int, int]:
    """Seed, first, count and threads as ints; no threads means one for every processor."""
    return (
        check_range(function, "seed", seed, 0, 2**64 - 1),
        check_range(function, "first", first, 0, MOST_63),
        check_range(function, "count", count, 0, MOST_63),
        check_range(function, "threads", processors() if threads is None else threads, 1, 1024),
    )


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
