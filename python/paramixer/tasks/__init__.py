"""Data sets and generators, a module each; `load` makes any of them by its name."""

from __future__ import annotations

from collections.abc import Callable
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
    "mini-digits": "mini_images:mini_digits",
    "mini-dna": "mini_dna:mini_dna",
    "mini-fashion": "mini_images:mini_fashion",
    "mini-foods": "mini_texts:mini_foods",
    "mini-listops": "mini_listops:mini_listops",
    "mini-mnist": "sequential_mnist:mini_mnist",
    "mini-movies": "mini_texts:mini_movies",
    "mini-plaid": "mini_plaid:mini_plaid",
    "mini-retrieval": "mini_novels:mini_retrieval",
    "mini-sources": "mini_texts:mini_sources",
    "mini-text": "mini_novels:mini_text",
    "mini-textures": "mini_images:mini_textures",
    "sequential-mnist": "sequential_mnist:sequential_mnist",
    "temporal-order": "temporal_order:temporal_order",
}


def names() -> tuple[str, ...]:
    """What `load` takes, in alphabetical order."""
    return tuple(sorted(_MAKERS))


def maker(name: str) -> Callable[..., Task]:
    """The function that makes the task of that name; ValueError if there is none."""
    if name not in _MAKERS:
        raise ValueError(f"load: name must be one of {', '.join(names())}, got {name!r}")
    module, function = _MAKERS[name].split(":")
    return getattr(import_module(f"paramixer.tasks.{module}"), function)


def load(name: str, **settings: Any) -> Task:
    """The task of that name.

    Args:
        name: one of `names()`.
        settings: arguments of `maker(name)`, e.g. `length` or `folder`.

    Raises:
        ValueError: there is no such task.
        TypeError: the task has no such setting.
        ImportError: the package that brings the data is missing; the message names it.
        FileNotFoundError: the files of a release are not where they were looked for.
    """
    return maker(name)(**settings)
