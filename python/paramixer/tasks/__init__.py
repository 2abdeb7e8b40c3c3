"""Data sets and generators, a module each; `load` makes any of them by its name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from paramixer.tasks.task import Task

_MAKERS = {
    "adding": "adding:adding",
    "copying": "copying:copying",
    "lra-image": "lra_image:lra_image",
    "lra-listops": "lra_listops:lra_listops",
    "lra-path-x": "lra_pathfinder:lra_path_x",
    "lra-pathfinder": "lra_pathfinder:lra_pathfinder",
    "lra-retrieval": "lra_retrieval:lra_retrieval",
    "lra-text": "lra_text:lra_text",
    "temporal-order": "temporal_order:temporal_order",
}


def names() -> tuple[str, ...]:
    """What `load` takes, in alphabetical order."""
    return tuple(sorted(_MAKERS))


def load(name: str, **settings: Any) -> Task:
    """The task of that name, made by the function of the same name in its module.

    Args:
        name: one of `names()`.
        settings: arguments of the task's own function, e.g. `length` or `folder`.

    Raises:
        ValueError: there is no such task.
        TypeError: the task has no such setting.
        ImportError: the package that brings the data is missing; the message names it.
    """
    if name not in _MAKERS:
        raise ValueError(f"load: name must be one of {', '.join(names())}, got {name!r}")
    module, function = _MAKERS[name].split(":")
    return getattr(import_module(f"paramixer.tasks.{module}"), function)(**settings)
