"""Instructions of a kernel's loops, counted in its machine code."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tuning.resources import readable

FUNCTION = re.compile(r"Function : (\S+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
OPCODE = re.compile(r"(?:@!?U?P\w+ )?([A-Z0-9]+)")
BRANCH = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")

Loop = Counter[str]  # how often it has each opcode


def disassembler() -> str | None:
    """cuobjdump, of the toolkit or of Triton, which torch brings."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "cuobjdump")
    found = shutil.which("cuobjdump") or (str(toolkit) if toolkit.exists() else None)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.submodule_search_locations:
        inside = Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin")
        found = shutil.which("cuobjdump", path=str(inside))
    return found


def innermost(instructions: list[tuple[int, str]]) -> Iterator[Loop]:
    """The loops that hold no other loop; a loop ends in a branch backwards."""
    ends = []
    for address, text in instructions:
        target = BRANCH.search(text)
        if target and int(target[1], 16) < address:
            ends.append((int(target[1], 16), address))
    for begin, end in ends:
        if any((b, e) != (begin, end) and begin <= b and e <= end for b, e in ends):
            continue
        inside = (text for address, text in instructions if begin <= address <= end)
        yield Counter(match[1] for text in inside if (match := OPCODE.match(text)))


def loops(listing: str) -> dict[str, list[Loop]]:
    """The innermost loops of every kernel in what cuobjdump --dump-sass prints."""
    _, *parts = FUNCTION.split(listing)
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        code = [(int(address, 16), text) for address, text in INSTRUCTION.findall(body)]
        found[readable(name)] = list(innermost(code))
    return found


def dump(tool: str, objects: list[Path]) -> dict[str, list[Loop]]:
    """The same of object files for one architecture."""
    found: dict[str, list[Loop]] = {}
    for path in objects:
        command = [tool, "--dump-sass", path]
        found |= loops(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def shortest(found: list[Loop], opcode: str) -> int | None:
    """Instructions of the shortest loop among those with the most of an opcode.

    Loops exist once for every residual; the shortest is without.
    """
    most = max((loop[opcode] for loop in found), default=0)
    return min((loop.total() for loop in found if loop[opcode] == most), default=None)
