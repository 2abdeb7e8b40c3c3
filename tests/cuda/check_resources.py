"""Compares the CUDA kernels' resources with cuda/resources.md, or writes that table.

Fails when a kernel spills registers or needs a stack frame, on any architecture; when fewer of its
blocks run at once than its launch bounds ask for, on compute capability 9.0 and 10.0; and, where
the nvcc is the table's, when anything is not as the table says. Another release of nvcc chooses
other registers: then only the limits are tested.

    python check_resources.py [--update] --nvcc 13.0.88 --plans PROGRAM kernels_f32.cu.o ..
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from tuning import resources  # noqa: E402

TABLE = ROOT / "cuda" / "resources.md"
UPDATE = "if that is meant, run: cmake --build BUILD --target update_cuda_resources"


def limits(entry: resources.Entry, launch: dict[str, int]) -> list[str]:
    """What no nvcc may do."""
    where = f"{entry.kernel} on {entry.architecture}"
    faults = []
    if entry.spills():
        faults.append(
            f"{where}: {entry.stack} bytes of stack, {entry.stores} of spill stores, "
            f"{entry.loads} of spill loads"
        )
    blocks, _ = resources.occupancy(entry, launch)
    if resources.number(entry.architecture) in (90, 100) and blocks < launch["blocks"]:
        faults.append(f"{where}: {blocks} blocks at once, not {launch['blocks']}")
    return faults


def main(argv: list[str]) -> int:
    """Prints what is wrong; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--nvcc", required=True, help="its version")
    parser.add_argument("--plans", required=True, help="the program made of plans.cpp")
    parser.add_argument("objects", nargs="*")
    args = parser.parse_args(argv)
    reports = [Path(f"{path}.resources") for path in args.objects if path.endswith(".cu.o")]
    plans = subprocess.run([args.plans], check=True, capture_output=True, text=True).stdout
    launches: dict[str, Any] = json.loads(plans)["kernels"]
    release = ".".join(args.nvcc.split(".")[:2])

    entries, faults = [], []
    for report in reports:
        found = resources.read(report)
        entries += found
        faults += [] if found else [f"{report} names no kernel"]
    if not entries:
        faults.append("no object file of a kernel was given")
    for entry in entries:
        faults += limits(entry, launches[resources.family(entry.kernel)])
    if faults:
        return fail(faults)
    rows = resources.table(entries, launches)
    if args.update:
        missing = {f"sm_{n}" for n in resources.MULTIPROCESSORS} - {e.architecture for e in entries}
        if missing:
            return fail([f"the build lacks {', '.join(sorted(missing))}: the table would too"])
        TABLE.write_text(resources.write(rows, release))
        return 0
    expected, made_by = resources.parse(TABLE.read_text())
    if made_by == release:
        different = resources.changes(expected, rows)
        faults += [*different, UPDATE] if different else []
    else:
        print(f"{TABLE.name} is by nvcc {made_by}, this is {release}: only limits were tested")
    return fail(faults)


def fail(faults: list[str]) -> int:
    """Says what is wrong; the exit status."""
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
