"""Registers, spills, shared memory and occupancy of the CUDA kernels, from ptxas' own report.

cuda/keep_resources.sh writes that report beside every object file; how many threads and how much
shared memory a launch asks for is what `plans` (plans.cpp) says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
# Template arguments in a mangled name: dtype and, of single factors, index type, access width,
# transposed or not.
DTYPES = {"d": "f64", "f": "f32", "NS_8BFloat16E": "bf16", "NS_7Float16E": "f16"}
NAME = re.compile(
    r"\d+(?P<kernel>[a-z_]+)_kernelI(?P<dtype>d|f|NS_8BFloat16E|NS_7Float16E)"
    r"(?:(?P<index>[il])Li(?P<width>\d+)E(?P<transpose>Lb1E)?)?"
)
# Of a copy: bytes of a word, index type.
COPY_NAME = re.compile(r"\d+(?P<kernel>rotate_tracks)_kernelILi(?P<bytes>\d+)E(?P<index>[il])")
# Dtype, links, transposed or not, with the residual or not.
BAND = re.compile(
    r"11band_kernelI(?P<dtype>NS_8BFloat16E|NS_7Float16E)"
    r"NS\d?_10BandTraitsILi(?P<links>\d+)EEELb(?P<transpose>[01])ELb(?P<keep>[01])E"
)


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks of one multiprocessor share (CUDA C++ Programming Guide, appendix 5)."""

    threads: int
    blocks: int
    shared: int  # bytes, of which every block takes 1 KiB more than it asks for
    registers: int = 65536
    warp_registers: int = 256  # granularity of a warp's registers


MULTIPROCESSORS = {
    80: Multiprocessor(threads=2048, blocks=32, shared=164 * 1024),
    90: Multiprocessor(threads=2048, blocks=32, shared=228 * 1024),
    100: Multiprocessor(threads=2048, blocks=32, shared=228 * 1024),
    120: Multiprocessor(threads=1536, blocks=24, shared=100 * 1024),
}


@dataclass(frozen=True)
class Entry:
    """One kernel on one architecture."""

    kernel: str  # readable
    architecture: str  # such as "sm_90"
    registers: int
    stack: int
    stores: int
    loads: int
    shared: int  # bytes that the kernel itself declares

    def spills(self) -> bool:
        """Whether anything lies in local memory."""
        return any((self.stack, self.stores, self.loads))


def readable(mangled: str) -> str:
    """Such as "mix_transpose f32 x4 64-bit" for a mangled kernel name."""
    if match := COPY_NAME.search(mangled):
        bits = "64" if match["index"] == "l" else "32"
        return f"{match['kernel']} {match['bytes']} bytes {bits}-bit"
    if band := BAND.search(mangled):
        name = "band" + ("_transpose" if band["transpose"] == "1" else "")
        residual = " residual" if band["keep"] == "1" else ""
        return f"{name} {DTYPES[band['dtype']]} K={band['links']}{residual}"
    match = NAME.search(mangled)
    if match is None:
        return mangled
    name = match["kernel"] + ("_transpose" if match["transpose"] else "")
    if match["index"] is None:
        return f"{name} {DTYPES[match['dtype']]}"
    bits = "64" if match["index"] == "l" else "32"
    return f"{name} {DTYPES[match['dtype']]} x{match['width']} {bits}-bit"


def family(kernel: str) -> str:
    """Which kernels of `plans` a readable name belongs to."""
    if kernel.startswith("band"):
        return "band " + kernel.split()[2]
    return "tile" if kernel.startswith("chain_tile") or "_window" in kernel else "single"


def number(architecture: str) -> int:
    """90 for "sm_90" and "sm_90a"."""
    return int(re.sub(r"\D", "", architecture))


def read(report: Path) -> list[Entry]:
    """The kernels of one OBJECT.resources."""
    entries = []
    for match in ENTRY.finditer(report.read_text()):
        declared = re.search(r"(\d+) bytes smem", match["rest"])
        numbers = (int(match[field]) for field in ("registers", "stack", "stores", "loads"))
        kernel, shared = readable(match["kernel"]), int(declared[1]) if declared else 0
        entries.append(Entry(kernel, match["architecture"], *numbers, shared))
    return entries


def blocks_at_once(entry: Entry, threads: int, shared: int) -> int:
    """How many blocks of a kernel a multiprocessor holds; 0 where it has too little for one."""
    limits = MULTIPROCESSORS[number(entry.architecture)]
    warps = -(-threads // 32)
    # A quarter of the registers belongs to each of the four schedulers, a warp to one of them.
    per_warp = -(-entry.registers * 32 // limits.warp_registers) * limits.warp_registers
    by_registers = 4 * (limits.registers // 4 // per_warp) // warps
    by_shared = limits.shared // (shared + entry.shared + 1024)
    return min(by_registers, by_shared, limits.threads // threads, limits.blocks)


def occupancy(entry: Entry, launch: dict[str, int]) -> tuple[int, int]:
    """Blocks at once, and the percentage of a multiprocessor's threads that these are."""
    blocks = blocks_at_once(entry, launch["threads"], launch["shared"])
    most = MULTIPROCESSORS[number(entry.architecture)].threads
    return blocks, round(100 * blocks * launch["threads"] / most)


HEAD = """\
# Resources of the CUDA kernels

Of every instantiation: registers of a thread, and the share of a multiprocessor's threads that
blocks of the kernel can occupy at once (0 %: the GPU has too little shared memory, and other
kernels run). Shared memory is the most that a launch asks for, in bytes. No kernel spills a
register or has a stack frame; a test refuses that.

The test cuda_resources compares this table with the build, where that is by the same release of
nvcc, so that no change goes unseen. After one that is meant, write the table anew, from a BUILD for
all these architectures that was configured with PARAMIXER_TESTS=ON:

    cmake --build BUILD --target update_cuda_resources

"""


def table(entries: Iterable[Entry], launches: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Rows by kernel; columns are threads, shared memory and the architectures."""
    rows: dict[str, dict[str, str]] = {}
    for entry in sorted(entries, key=lambda e: (e.kernel, number(e.architecture))):
        launch = launches[family(entry.kernel)]
        start = {"threads": str(launch["threads"]), "shared": str(launch["shared"])}
        row = rows.setdefault(entry.kernel, start)
        row[entry.architecture] = f"{entry.registers}, {occupancy(entry, launch)[1]} %"
    return rows


def write(rows: dict[str, dict[str, str]], release: str) -> str:
    """The table as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"Compiled by nvcc {release}.", "", "| " + " | ".join(["kernel", *columns]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [
        "| " + " | ".join([kernel, *row.values()]) + " |" for kernel, row in sorted(rows.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def parse(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """What `write` wrote: the rows, and the release of nvcc."""
    release = re.search(r"^Compiled by nvcc (\S+)\.$", text, re.MULTILINE)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    if release is None or not lines:
        raise ValueError("no table of resources")
    (_, *columns), *rows = lines
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}, release[1]


def changes(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    """What a build made other than the table says, of the architectures that it was made for."""
    built = set(next(iter(new.values())))
    found = [f"{kernel} is not in the table" for kernel in sorted(new.keys() - old.keys())]
    found += [f"{kernel} is not in the build" for kernel in sorted(old.keys() - new.keys())]
    for kernel in sorted(old.keys() & new.keys()):
        for column in old[kernel].keys() & built:
            if old[kernel][column] != new[kernel][column]:
                where = f"{kernel}, {column}"
                found.append(f"{where}: {old[kernel][column]} in the table, {new[kernel][column]}")
    return found
