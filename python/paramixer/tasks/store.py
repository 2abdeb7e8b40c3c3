"""A data set in one file: tokens of all samples one behind the other, read by memory map.

Layout: 128 bytes with a magic line, the format's version, and place, size and SHA-256 of the
description; the arrays, each from a multiple of 64 bytes on; the description, JSON with parameters,
source, vocabulary, facts, and of every array type, shape, place and SHA-256. The arrays of n
samples with S sequences each:

    tokens     (total,) uint8 or uint16
    offsets    (n S + 1,) int64, where each sequence begins
    labels     (n,) uint8
    groups     (n,) uint16, the file of the source, or the part, that each sample comes from
    histogram  (G, V) int64, how often each token occurs in each group
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramixer.tasks.files import replacing

VERSION = 1
MOST_CHECKED = 2**27  # bytes of an array whose checksum is compared whenever it is opened

_MAGIC = b"paramixer store\n"
_HEADER = struct.Struct("<16sQQQ32s")
_START = 128
_ALIGNMENT = 64


class Row(NamedTuple):
    """What a source gives for one sample: its sequences of tokens, its label, its group."""

    sequences: tuple[NDArray, ...]
    label: int
    group: int


@dataclass
class Content:
    """What a store is made of.

    Attributes:
        rows: the samples, read once.
        groups: names of the groups.
        vocabulary: number of different tokens V, at most 2^16; tokens are 0 .. V - 1.
        sequences: of each sample, S.
        facts: further numbers to store; read after the last row.
    """

    rows: Iterable[Row]
    groups: Sequence[str]
    vocabulary: int
    sequences: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """An open file.

    Attributes:
        path: of the file.
        description: see the module.
        arrays: see the module; read-only memory maps.
    """

    path: Path
    description: Mapping[str, Any]
    arrays: Mapping[str, NDArray]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(n,) class of every sample."""
        return self.arrays["labels"]

    @property
    def groups(self) -> NDArray[np.uint16]:
        """(n,) group of every sample."""
        return self.arrays["groups"]

    @property
    def sequences(self) -> int:
        """How many sequences a sample has, S."""
        return self.description["sequences"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the source noted."""
        return self.description["facts"]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n, S) length of every sequence."""
        return np.diff(self.arrays["offsets"]).reshape(-1, self.sequences)

    def sequence(self, sample: int, number: int = 0) -> NDArray:
        """The tokens of one sequence of a sample, a view of the file."""
        place = sample * self.sequences + number
        start, end = self.arrays["offsets"][place : place + 2]
        return self.arrays["tokens"][start:end]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)  # a worker maps the file itself


def prepare(
    path: Path,
    parameters: Mapping[str, Any],
    sources: Sequence[Path],
    make: Callable[[], Content],
    progress: Callable[[int], None] = lambda samples: None,
) -> Store:
    """Opens a store, made before from the same parameters and sources, or makes it.

    A source counts as unchanged with its name, size and time; for a folder that is the time when
    the last entry was added, removed or renamed. Several processes may call this at once: one makes
    the file, the others wait.

    Args:
        path: of the file; its folder is created.
        parameters: what the content is a function of besides the sources, as JSON.
        sources: files and folders that the content is read from.
        make: reads them.
        progress: is told how many samples more are done, if the store is made.

    Returns:
        The open store.

    Raises:
        ValueError: the file is damaged or none of ours, or a source is malformed.
    """
    wanted = json.loads(json.dumps({"parameters": parameters, "source": fingerprint(sources)}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            store = open_store(path)
            if store.description.items() >= wanted.items():
                return store
        with replacing(path) as temporary, temporary.open("wb") as file:
            _write(file, make(), wanted, progress)
    return open_store(path)


def open_store(path: Path, *, verify: bool = False) -> Store:
    """Opens a file for reading.

    Args:
        path: of the file.
        verify: compare the checksums of all arrays, not of those up to `MOST_CHECKED` bytes alone.

    Returns:
        The store. One of another version has an empty description, which fits no parameters.

    Raises:
        ValueError: the file is damaged or none of ours.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        _demand(len(header) == _HEADER.size, path, f"at least {_START} bytes", size)
        magic, version, start, length, digest = _HEADER.unpack(header)
        _demand(magic == _MAGIC, path, f"{_MAGIC!r} at its beginning", magic)
        if version != VERSION:
            return Store(path, {}, {})
        _demand(size == start + length, path, f"{start + length} bytes", size)
        file.seek(start)
        text = file.read(length)
    _demand(hashlib.sha256(text).digest() == digest, path, "a description as it was written", "not")
    description = json.loads(text)
    arrays = {name: _map(path, name, one) for name, one in description["arrays"].items()}
    for name, array in arrays.items():
        if verify or array.nbytes <= MOST_CHECKED:
            expected = description["arrays"][name]["sha256"]
            found = hashlib.sha256(array.data).hexdigest()
            _demand(found == expected, path, f"{name} with SHA-256 {expected}", found)
    return Store(path, description, arrays)


def fingerprint(sources: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of every file; name and time of every folder."""
    return [
        [path.name, stat.st_size if path.is_file() else None, stat.st_mtime_ns]
        for path, stat in ((path, path.stat()) for path in sources)
    ]


def _demand(condition: bool, path: Path, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(
            f"store: {path} must have {rule} (got {value}): it is damaged, or another program's "
            "file; delete it, and it is made again"
        )


def _map(path: Path, name: str, described: Mapping[str, Any]) -> NDArray:
    shape = tuple(described["shape"])
    if 0 in shape:  # which cannot be mapped
        return np.empty(shape, described["dtype"])
    return np.memmap(path, described["dtype"], "r", described["start"], shape)


def _write(
    file: BinaryIO,
    content: Content,
    wanted: Mapping[str, Any],
    progress: Callable[[int], None],
) -> None:
    dtype = np.dtype(np.uint8 if content.vocabulary <= 256 else np.uint16)
    described: dict[str, Any] = {}
    histogram = np.zeros((len(content.groups), content.vocabulary), dtype=np.int64)
    marks: list[tuple[int, int]] = []
    lengths: list[int] = []

    def tokens() -> Iterator[NDArray]:
        for sequences, label, group in content.rows:
            marks.append((label, group))
            for sequence in sequences:
                lengths.append(len(sequence))
                histogram[group] += np.bincount(sequence, minlength=content.vocabulary)
                yield sequence.astype(dtype, copy=False)
            progress(1)

    file.seek(_START)
    described["tokens"] = _append(file, dtype, tokens())
    labels, groups = np.array(marks, dtype=np.int64).reshape(-1, 2).T
    for name, array in (
        ("offsets", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])),
        ("labels", labels.astype(np.uint8)),
        ("groups", groups.astype(np.uint16)),
        ("histogram", histogram),
    ):
        described[name] = _append(file, array.dtype, [array]) | {"shape": array.shape}
    start = file.tell()
    text = json.dumps(
        {
            **wanted,
            "vocabulary": content.vocabulary,
            "sequences": content.sequences,
            "groups": list(content.groups),
            "facts": content.facts,
            "arrays": described,
        }
    ).encode()
    file.write(text)
    file.seek(0)
    digest = hashlib.sha256(text).digest()
    file.write(_HEADER.pack(_MAGIC, VERSION, start, len(text), digest).ljust(_START, b"\0"))


def _append(file: BinaryIO, dtype: np.dtype, pieces: Iterable[NDArray]) -> dict[str, Any]:
    """Writes one array, piece by piece, and describes it."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    start, digest = file.tell(), hashlib.sha256()
    for piece in pieces:
        data = np.ascontiguousarray(piece).data
        digest.update(data)
        file.write(data)
    count = (file.tell() - start) // dtype.itemsize
    return {"dtype": dtype.str, "shape": [count], "start": start, "sha256": digest.hexdigest()}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
