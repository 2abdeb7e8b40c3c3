#!/usr/bin/env python3
"""The CUDA kernels' predicted times, and a sweep of their knobs (cuda/traits.h).

predict   prints the predicted time of every chain of the goals; --write keeps it. Needs a C++
          compiler.
sweep     builds variants of the kernels and prints, for each, registers and blocks at once of the
          main kernels, and the times of a few chains: measured where there is a GPU, else predicted
          from the plan and from the machine code of the loops. Needs nvcc.

    python scripts/tune.py predict
    python scripts/tune.py sweep
    python scripts/tune.py sweep --predict --variant TileTraits.kSegment=17 TileTraits.kThreads=128
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tuning import plans, predictions, sass
from tuning import sweep as sweeping

PREDICTIONS = plans.ROOT / "scripts" / "benchmarks" / "predictions.md"
BUILD = plans.ROOT / "build" / "tuning"
# Of which a sweep shows registers and blocks at once.
SHOWN = {
    "tile f32": "chain_tile f32",
    "tile bf16": "chain_tile bf16",
    "back f32": "chain_tile_backward f32",
    "back bf16": "chain_tile_backward bf16",
    "mix f32": "mix f32 x4 32-bit",
    "mix_backward f32": "mix_backward f32 x4 32-bit",
    "band K=3": "band bf16 K=3",
}


def predict(args: argparse.Namespace) -> int:
    """Prints or writes the predictions."""
    text = predictions.document(plans.build(BUILD / "plans"))
    if args.write:
        PREDICTIONS.write_text(text)
    else:
        print(text, end="")
    return 0


def capability() -> str | None:
    """Of the GPU here, such as "90"; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = done.stdout.split()
    return found[0].replace(".", "") if done.returncode == 0 and found else None


def sweep(args: argparse.Namespace) -> int:
    """Builds, times and prints; 1 when a variant was wrong."""
    here = capability()
    if shutil.which("nvcc") is None:
        print("tune.py: nvcc is not on PATH; the CUDA toolkit brings it", file=sys.stderr)
        return 2
    knobs = [{}, *map(sweeping.parse_knobs, args.variant)] if args.variant else sweeping.VARIANTS
    variants = [sweeping.prepare(args.out, number, k) for number, k in enumerate(knobs)]
    sweeping.build(variants, here or "90", args.jobs)
    tool, rows, wrong = sass.disassembler(), [], 0
    if tool is None:
        print("tune.py: no cuobjdump: times are by the tree's own counts", file=sys.stderr)
    for variant in variants:
        row: dict[str, Any] = {"variant": str(variant), "failure": variant.failure}
        if not variant.failure:
            row["predicted"] = sweeping.describe(variant, tool)
        if not variant.failure and here and not args.predict:
            try:
                row["measured"] = sweeping.measure(variant)
                if cases := sweeping.wrong(row["measured"]):
                    row["failure"] = f"wrong: {'; '.join(cases)}"
            except subprocess.CalledProcessError as error:
                row["failure"] = f"failed: {str(error.stderr or error).strip()[-200:]}"
        wrong += bool(row["failure"]) and not variant.failure
        rows.append(row)
    (args.out / "sweep.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return int(wrong > 0)


def table(rows: list[dict[str, Any]]) -> str:
    """The sweep as Markdown: times in microseconds, forward and forward with backward."""
    cases = [plans.argument(chain) for chain in sweeping.CASES]
    names = [f"{predictions.name(c)} {c.dtype}" for c in sweeping.CASES]
    lines = []
    for row in rows:
        if row["failure"]:
            lines.append([row["variant"], row["failure"]])
            continue
        known = row["predicted"]
        cells = [known.get(kernel, "") for kernel in SHOWN.values()]
        for case in cases:
            if measured := row.get("measured", {}).get(case):
                forward, back = sum(measured["forward"]), sum(measured["backward"])
            else:
                forward, back = known[case]["forward"], known[case]["backward"]
            cells.append(f"{forward:.0f}, {back:.0f}")
        lines.append([row["variant"], ", ".join(known["spills"]), *cells])
    title = "measured" if any("measured" in row for row in rows) else "predicted for an H200"
    head = f"Registers x blocks at once; microseconds forward, backward, {title}.\n\n"
    return head + predictions.markdown(["variant", "spills", *SHOWN, *names], lines)


def main(argv: list[str]) -> int:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("predict")
    command.add_argument("--write", action="store_true")
    command.set_defaults(run=predict)
    command = commands.add_parser("sweep")
    command.add_argument("--predict", action="store_true", help="run nothing on a GPU")
    text = "instead of all variants, the tree's and this one; may be repeated"
    command.add_argument("--variant", nargs="+", action="append", metavar="KNOB=VALUE", help=text)
    command.add_argument("--jobs", type=int, default=os.cpu_count())
    command.add_argument("--out", type=Path, default=BUILD, help="where variants are built")
    command.set_defaults(run=sweep)
    args = parser.parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
