"""Files that are either whole or absent, and records of what has been made in a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_NAME = "made_by_paramixer.json"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes that name when the block ends well.

    The block makes a file or a folder of that name; whatever `path` was before is replaced. After
    an error, or Ctrl-C, nothing is left of it. What a killed process left is removed by the next
    one, and no reader takes it for data: its name begins with a dot.
    """
    temporary = path.with_name(f".{path.name}.partial")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)  # a folder cannot replace one that holds files
        else:
            _flush(temporary)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


class Record:
    """Which files of a data set are complete, and what is in them; kept in the data's folder.

    A file counts as complete when the record names it, which happens after the file got its name,
    and has the size that it had then. So an interrupted command can go on where it was.

    Attributes:
        folder: of the data.
        parts: facts about every complete file, by name.

    Args:
        folder: is created; must be empty or hold what the same command began.
        parameters: what the data are a function of, as JSON.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any]):
        self.folder = folder
        self._path = folder / RECORD_NAME
        self._parameters = json.loads(json.dumps(parameters))  # as they are read
        self.parts: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            stored = json.loads(self._path.read_text())
            self._check(stored["parameters"])
            self.parts = stored["parts"]
            return
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"folder must be empty or hold data of this command (got {folder}, which has no "
                f"{RECORD_NAME}); name another one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def is_complete(self, name: str) -> bool:
        """Whether the part is there."""
        path = self.folder / name
        return (
            name in self.parts
            and path.is_file()
            and path.stat().st_size == self.parts[name]["bytes"]
        )

    def complete(self, name: str, facts: Mapping[str, Any]) -> None:
        """Notes that the part is there, and facts about it."""
        self.parts[name] = {"bytes": (self.folder / name).stat().st_size, **facts}
        self._save()

    def _check(self, stored: dict[str, Any]) -> None:
        wanted = self._parameters
        names = sorted(stored.keys() | wanted.keys())
        differ = [name for name in names if stored.get(name) != wanted.get(name)]
        if differ:
            told = ", ".join(f"{n} {stored.get(n)!r}, not {wanted.get(n)!r}" for n in differ)
            raise ValueError(
                f"folder must hold data made with the same parameters (got {self.folder}, made "
                f"with {told}); name another one, or delete it"
            )

    def _save(self) -> None:
        with replacing(self._path) as temporary:
            content = {"parameters": self._parameters, "parts": self.parts}
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def sample_facts(lengths: NDArray, labels: NDArray, classes: int) -> dict[str, Any]:
    """What a record or a summary says of samples: how many, of each class, and how long."""
    facts: dict[str, Any] = {
        "samples": len(lengths),
        "labels": np.bincount(labels, minlength=classes).tolist(),
    }
    if len(lengths) > 0:
        facts["lengths"] = {
            "least": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 1),
            "most": int(lengths.max()),
        }
    return facts


def _flush(path: Path) -> None:
    """So that a name never outlives a power cut that its content did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
