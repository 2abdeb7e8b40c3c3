"""Short ListOps: expressions of the official grammar, generated once into the official files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paramixer._checks import check_choice
from paramixer.tasks import listops
from paramixer.tasks.floors import stored_floors
from paramixer.tasks.lra_listops import lra_listops
from paramixer.tasks.mini import FOLDER
from paramixer.tasks.task import Task

VARIANTS = {"64": "17 .. 63 tokens, 5 levels", "128": "33 .. 127 tokens, 6 levels"}

_PRESETS = {"64": "mini", "128": "mini-128"}


def mini_listops(folder: str | Path = FOLDER, variant: str = "64", **options: Any) -> Task:
    """What is the value of a short expression?

    The files are those that `python scripts/make_data.py listops --preset mini` writes.

    Args:
        folder: the files' own one is made in it.
        variant: one of `VARIANTS`.
        options: see `paramixer.tasks.mini`.

    Returns:
        x (n,) int64: tokens 1 .. 15 in the order of `listops.TOKENS`; y () int64 in 0 .. 9; 30,000
        / 1,000 / 2,000.
    """
    check_choice("mini_listops", "variant", variant, VARIANTS)
    preset = listops.PRESETS[_PRESETS[variant]]
    place = Path(folder) / f"listops-{_PRESETS[variant]}"
    listops.write(place, preset)
    task = lra_listops(place, **options)
    return replace(
        task,
        name="mini-listops",
        variant=variant,
        length=preset.grammar.max_length - 1,
        floors={**task.floors, **stored_floors("mini-listops", variant)},
        published=(),
        comparable_to="itself alone: a small task of this project",
    )
