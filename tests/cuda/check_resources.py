"""Fails when a CUDA kernel spills registers or needs a stack frame, on any architecture.

Reads the resource reports that cuda/keep_resources.sh writes beside the object files and prints the
registers of every kernel, so that growth can be seen.

    python check_resources.py kernels_f32.cu.o ..
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
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


def number(architecture: str) -> int:
    """90 for "sm_90" and "sm_90a"."""
    return int(re.sub(r"\D", "", architecture))


def main(objects: list[str]) -> int:
    """Prints the table; returns the exit status."""
    registers: dict[str, dict[str, int]] = defaultdict(dict)
    faults = []
    for path in objects:
        if not path.endswith(".cu.o"):
            continue
        entries = list(ENTRY.finditer(Path(f"{path}.resources").read_text()))
        if not entries:
            faults.append(f"{path}.resources names no kernel")
        for entry in entries:
            name = readable(entry["kernel"])
            registers[name][entry["architecture"]] = int(entry["registers"])
            if any(int(entry[field]) for field in ("stack", "stores", "loads")):
                faults.append(
                    f"{name} on {entry['architecture']}: {entry['stack']} bytes of stack, "
                    f"{entry['stores']} of spill stores, {entry['loads']} of spill loads"
                )
    if not registers:
        faults.append("no object file of a kernel was given")
    architectures = sorted({a for row in registers.values() for a in row}, key=number)
    print(f"{'registers':40}", *(f"{a:>7}" for a in architectures))
    for name, row in sorted(registers.items()):
        print(f"{name:40}", *(f"{row.get(a, '-'):>7}" for a in architectures))
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
