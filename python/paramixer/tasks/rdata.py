"""Reads data that R packages bring, as far as tables of text and numbers need it.

A package keeps its objects in `Rdata.rdb`, compressed one behind the other, and their places in
`Rdata.rdx`; both are in R's serialization format (version 2 or 3, big-endian), which section
"Serialization Formats" of the manual "R Internals" describes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

_NIL, _REFERENCE, _GLOBAL = 254, 255, 253
_SYMBOL, _PAIRS, _STRING = 1, 2, 9
_LOGICALS, _INTEGERS, _REALS, _STRINGS, _LIST = 10, 13, 14, 16, 19
_HAS_ATTRIBUTES, _HAS_TAG = 1 << 9, 1 << 10

_DECOMPRESSORS: dict[bytes, Callable[[bytes], bytes]] = {
    b"2": bz2.decompress,
    b"Z": lambda data: lzma.decompress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
    b"0": bytes,
    b"1": zlib.decompress,
}


def read_object(name: str, index: bytes, database: bytes) -> Any:
    """One object of a package.

    Args:
        name: of the object.
        index: content of `Rdata.rdx`.
        database: content of `Rdata.rdb`.

    Returns:
        A list of bytes (None where missing), ints or floats for a vector; a dict for a list with
        names such as a table, a factor as the numbers of its levels.

    Raises:
        ValueError: the object is of a kind that is not read here, or is not there.
    """
    places = deserialize(gzip.decompress(index))["variables"]
    if name not in places:
        raise ValueError(f"rdata: name must be one of {', '.join(places)} (got {name!r})")
    start, size = places[name]
    block = database[start + 4 : start + size]  # behind the size of what it expands to
    decompress = _DECOMPRESSORS.get(block[:1])
    return deserialize(zlib.decompress(block) if decompress is None else decompress(block[1:]))


def deserialize(data: bytes) -> Any:
    """The object that R's `serialize` wrote; see `read_object`."""
    return _Reader(data).read()


class _Reader:
    """Reads items one behind the other."""

    def __init__(self, data: bytes):
        if data[:2] != b"X\n":
            raise ValueError(f"rdata: data must begin with b'X\\n' (got {data[:2]!r})")
        self._data, self._place = data, 2
        self._symbols: list[Any] = []
        version, _, _ = self._numbers("i", 3)
        if version == 3:
            self._take(self._integer())  # the encoding of strings without a mark

    def read(self) -> Any:
        """The next item, without its attributes except names."""
        flags = self._integer()
        kind = flags & 0xFF
        if kind in (_NIL, _GLOBAL):
            return None
        if kind == _REFERENCE:
            return self._symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self._symbols.append(self.read().decode())
            return self._symbols[-1]
        if kind == _STRING:
            size = self._integer()
            return None if size == -1 else self._take(size)
        if kind == _PAIRS:
            return self._pairs(flags)
        value = self._vector(kind)
        attributes = self.read() if flags & _HAS_ATTRIBUTES else {}
        if kind == _LIST and "names" in attributes:
            names = (name.decode() for name in attributes["names"])
            return dict(zip(names, value, strict=True))
        return value

    def _pairs(self, flags: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while flags & 0xFF == _PAIRS:
            if flags & _HAS_ATTRIBUTES:
                self.read()
            tag = self.read() if flags & _HAS_TAG else str(len(pairs))
            pairs[tag] = self.read()
            flags = self._integer()
        return pairs

    def _vector(self, kind: int) -> list[Any]:
        formats = {_LOGICALS: "i", _INTEGERS: "i", _REALS: "d"}
        if kind not in (*formats, _STRINGS, _LIST):
            raise ValueError(f"rdata: items of kind {kind} are not read here")
        count = self._integer()
        if kind in formats:
            return self._numbers(formats[kind], count)
        return [self.read() for _ in range(count)]

    def _integer(self) -> int:
        return self._numbers("i", 1)[0]

    def _numbers(self, letter: str, count: int) -> list[Any]:
        layout = struct.Struct(f">{count}{letter}")
        return list(layout.unpack(self._take(layout.size)))

    def _take(self, size: int) -> bytes:
        piece = self._data[self._place : self._place + size]
        if len(piece) != size:
            raise ValueError(f"rdata: data must have {size} bytes more (got {len(piece)})")
        self._place += size
        return piece
