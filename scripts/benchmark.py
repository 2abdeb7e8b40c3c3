#!/usr/bin/env python3
"""Times paramixer beside other ways to compute the same, and beside other mixers.

    factor   one sparse product and its backward
    chain    all factors of a protocol in one operator, forward and with gradients
    rotation the tracks of a ChordMixer block
    layer    training steps of published networks, beside the published formulation
    scaling  chains of 2^7 to 2^20 rows; a peer stops where it would exceed a limit
    mixers   all mixers at equal width, 2^10 to 2^16 rows; each is another function

Every peer of a case is checked against `paramixer.reference` in float64 first. Then the peers take
turns in rounds, so that a busy machine disturbs them alike, together with a copy of the minimal
traffic (100 % of it is the speed limit of memory) and a large float32 torch.mm (the FMA peak).

On the CPU, page faults of fresh memory decide the times of large tensors. The times are therefore
taken in a process whose allocator keeps freed memory (MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=1000000000000); a second process with the default allocator gives those in
parentheses, and two more, with paramixer alone, give what huge pages save a chain. Peak memory is
that of a process of its own, with the default allocator, above the state before the call (a layer:
before the model is made). Of mixers this includes the gradients.

    python scripts/benchmark.py chain --markdown                  a table of the README
    python scripts/benchmark.py scaling --plot docs/benchmarks.png
    python scripts/benchmark.py mixers --limit-gib 8 --json mixers.json --plot mixers.png
    python scripts/benchmark.py factor --peers paramixer --factors all --plot roofline.png
    python scripts/benchmark.py chain --json new.json --compare old.json
    python scripts/benchmark.py chain --device cuda --dtypes float32 bfloat16
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import mmap
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from benchmarking import cases, plots, report
from benchmarking.layers import LAYERS, LayerCase
from benchmarking.memory import peak_memory, status_bytes
from benchmarking.mixers import MIXER_LENGTHS, WIDTH, MixerCase
from benchmarking.runner import (
    ALL_PEERS,
    TOLERANCE,
    Case,
    Row,
    Runner,
    default_peers,
    make_tasks,
    records,
    slowest,
)
from paramixer import info

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
PR_SET_THP_DISABLE = 41  # linux/prctl.h
TOUCHED_BYTES = 4 << 30
CASE_TYPES = {
    "factor": cases.FactorCase,
    "chain": cases.ChainCase,
    "rotation": cases.RotationCase,
    "layer": LayerCase,
    "mixers": MixerCase,
}
AGAINST_LENGTH = ("scaling", "mixers")  # levels where a peer stops before it takes too much


def case_groups(args: argparse.Namespace) -> list[list[Case]]:
    """The cases that the options ask for; those of a group take turns."""
    if args.cases:
        return [[case_of(row)] for row in args.cases]
    if args.small_channels:
        return [[*cases.small_channel_cases(args.dtypes[0], args.device)]]
    if args.level == "layer":
        chosen = [case for case in LAYERS if args.network in str(case)]
        return [[replace(c, dtype=d, device=args.device)] for c in chosen for d in args.dtypes]
    if args.level == "mixers":
        return [[MixerCase(s, d, args.device)] for d in args.dtypes for s in args.shapes]
    if args.level == "rotation":
        made = [cases.RotationCase(s, d, args.device) for s in args.shapes for d in args.dtypes]
        return [[case] for case in made]
    pairs = [(shape, protocol) for shape in args.shapes for protocol in args.protocols]
    if args.level == "chain" and args.published_chains:
        pairs = cases.CHAINS
    if args.level == "factor":
        return [[case] for pair in pairs for d in args.dtypes for case in factors(*pair, d, args)]
    return [
        [cases.ChainCase(shape, protocol, dtype, args.device, args.residual)]
        for shape, protocol in pairs
        for dtype in args.dtypes
    ]


def factors(
    shape: cases.Shape, protocol: str, dtype: str, args: argparse.Namespace
) -> list[cases.FactorCase]:
    """The factors that --factors names, each once."""
    found = cases.factor_cases(shape, protocol, dtype, args.device)
    if len(found) == 1 or "all" in args.factors:
        return found
    chosen: dict[cases.FactorCase, None] = {}
    for name in args.factors:
        if name == "slowest":
            chosen[slowest(found)] = None
        else:
            chosen[found[len(found) // 2 if name == "middle" else int(name)]] = None
    return list(chosen)


def case_of(row: Row) -> Case:
    """The case that a record tells of."""
    kind: Any = CASE_TYPES[row["level"]]
    values = {f.name: row[f.name] for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def ask_worker(argv: list[str], allocator: str, rows: list[Row], *options: str) -> Any:
    """What this script answers as a worker with an allocator, for the cases of these records."""
    environment = {k: v for k, v in os.environ.items() if k not in KEEP_MEMORY}
    environment |= KEEP_MEMORY if allocator == "keep" else {}
    given = list({row["case"]: row for row in rows}.values())
    with tempfile.TemporaryDirectory() as folder:
        answer, chosen = Path(folder) / "answer.json", Path(folder) / "cases.json"
        chosen.write_text(json.dumps(given))
        worker = ["--worker", str(answer), "--cases", str(chosen), *options]
        subprocess.run([sys.executable, __file__, *argv, *worker], env=environment, check=True)
        return json.loads(answer.read_text())


def work(args: argparse.Namespace) -> Any:
    """What a worker answers: the records of all cases, or the peak memory of one peer."""
    warnings.filterwarnings("ignore", message=".*[Ss]parse")  # CSR tensors are announced as beta
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.small_pages:
        forbid_huge_pages()
    limit_memory(args)
    if args.memory_of:
        return peak_memory(case_of(args.cases[0]), args.memory_of, args.operations)
    facts, rows = machine(args.device), list[Row]()
    runner = Runner(args.device, args.rounds, args.budget)
    groups = case_groups(args)
    for number, group in enumerate(groups, 1):
        print(f"  {number} of {len(groups)}: {group[0]}", file=sys.stderr, flush=True)
        tasks = []
        for case in group:
            reasons = stopped(rows, args) if args.level in AGAINST_LENGTH else {}
            tasks += make_tasks(case, args.peers, args.operations, reasons)
        runner.measure(tasks)
        rows += records(tasks)
        del tasks  # their operands, before the next ones are made
    return {"machine": facts, "results": rows}


def touch_memory() -> None:
    """Writes to free memory once: a virtual machine is given it then, at a high price."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, min(TOUCHED_BYTES, free // 2)) as block:
        block[:: mmap.PAGESIZE] = b"1" * len(range(0, len(block), mmap.PAGESIZE))


def forbid_huge_pages() -> None:
    """Takes this process back to pages of 4 KiB, whatever it advises."""
    if ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        sys.exit("benchmark: the kernel does not let a process do without huge pages")


def limit_memory(args: argparse.Namespace) -> None:
    """Makes an allocation beyond the limit fail, not the whole run; GPUs do that themselves."""
    if args.device == "cpu":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = status_bytes("VmData") + int(args.limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def add_memory(argv: list[str], rows: list[Row]) -> None:
    """Measures the peak memory of every peer that ran, each in a process of its own."""
    ran = [row for row in rows if row["calls"] and row["peer"] not in report.MEASURES]
    for case, peer in dict.fromkeys((row["case"], row["peer"]) for row in ran):
        print(f"  memory: {case}, {peer}", file=sys.stderr, flush=True)
        own = [row for row in ran if (row["case"], row["peer"]) == (case, peer)]
        names = [row["operation"] for row in own]
        options = ["--memory-of", peer, "--operations", *names]
        try:
            peaks = ask_worker(argv, "default", own[:1], *options)
        except subprocess.CalledProcessError as error:  # its message is on the terminal
            print(f"    no memory figure of {peer}: {error}", file=sys.stderr)
            continue
        for row in own:
            row["peak_mib"] = peaks[row["operation"]] / 2**20


def stopped(rows: list[Row], args: argparse.Namespace) -> dict[tuple[str, str], str]:
    """Which peers and operations do not go on to the next length, and why."""
    reasons = {}
    for peer in args.peers:
        for operation in args.operations:
            own = [row for row in rows if (row["peer"], row["operation"]) == (peer, operation)]
            if own and own[-1]["failure"]:
                reasons[peer, operation] = own[-1]["failure"]
                continue
            last = [row.get("median_ms") or 0.0 for row in own[-2:]] or [0.0]
            # Time grows a little faster than N; with N squared at most.
            growth = min(max(last[-1] / max(last[0], 1e-9), 2.2), 4.0)
            if last[-1] * growth > 1e3 * args.limit_seconds:
                reasons[peer, operation] = "stopped: time"
    return reasons


def machine(device: str) -> dict[str, str]:
    """Where the figures come from."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    facts = info.collect() | {"cpu": model[1] if model else "unknown"}
    facts |= {"cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    if device != "cpu":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return facts


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    shape = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    add("level", choices=["factor", "chain", "rotation", "layer", "scaling", "mixers"])
    add("--shapes", type=shape, nargs="+", metavar="B,N,D")
    text = "chord, cdil:K (default: both, K=3; of scaling cdil:3; of chain those of the README)"
    add("--protocols", nargs="+", metavar="PROTOCOL", help=text)
    text = "factors of cdil: numbers, middle, slowest, all (default middle slowest)"
    add("--factors", nargs="+", default=["middle", "slowest"], metavar="M", help=text)
    add("--residual", default="none", choices=["none", "previous", "initial"], help="of chains")
    add("--network", default="", help="layers whose name contains this")
    add("--small-channels", action="store_true", help="factors over D, in nanoseconds per byte")
    add("--operations", nargs="+")
    add("--peers", nargs="+")
    add("--dtypes", nargs="+", default=["float32"], choices=list(TOLERANCE))
    add("--device", default="cpu")
    add("--threads", type=int, help="default: those of torch")
    add("--rounds", type=int, default=15)
    text = "seconds per entry and allocator (default 0.5, of chain 2, of layer 6)"
    add("--budget", type=float, help=text)
    add("--limit-seconds", type=float, default=10.0, help="of scaling, mixers: a call (default 10)")
    text = "memory of operands and peer, on the CPU (default 16)"
    add("--limit-gib", type=float, default=16.0, help=text)
    add("--one-allocator", action="store_true", help="leave out the default allocator")
    add("--memory", action=argparse.BooleanOptionalAction, help="peak memory (not of factors)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--read", type=Path, metavar="FILE", help="report such a file, measure nothing")
    add("--compare", type=Path, metavar="FILE", help="show changes against such a file")
    text = "against N for scaling and mixers, else the roofline"
    add("--plot", type=Path, metavar="FILE", help=text)
    add("--markdown", action="store_true", help="print the tables of the README only")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    add("--cases", type=lambda name: json.loads(Path(name).read_text()), help=argparse.SUPPRESS)
    add("--memory-of", help=argparse.SUPPRESS)
    add("--small-pages", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    fill_defaults(args)
    check_names(parser, args)
    return args


def fill_defaults(args: argparse.Namespace) -> None:
    """What an option left out means at this level."""
    scaling = args.level == "scaling"
    args.published_chains = not (args.shapes or args.protocols)
    lengths = [(1, length, cases.SCALING_CHANNELS) for length in cases.SCALING_LENGTHS]
    shapes = {
        "scaling": lengths,
        "mixers": [(1, length, WIDTH) for length in MIXER_LENGTHS],
        "rotation": cases.ROTATIONS,
    }
    args.shapes = args.shapes or shapes.get(args.level, cases.SHAPES)
    args.protocols = args.protocols or (["cdil:3"] if scaling else ["chord", "cdil:3"])
    args.budget = args.budget or {"chain": 2.0, "layer": 6.0}.get(args.level, 0.5)
    if args.memory is None:
        args.memory = args.level != "factor"
    # Against N only one figure is drawn; small channels are about our own kernels.
    args.one_allocator |= args.level in AGAINST_LENGTH or args.small_channels
    args.one_allocator |= args.device != "cpu"
    kind: Any = CASE_TYPES["chain" if scaling else args.level]
    args.operations = args.operations or [*kind.operations, *kind.more_operations]
    if args.small_channels:
        args.peers = ["paramixer"]
    args.peers = args.peers or default_peers(kind.level, args.device)


def check_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a message when a name is unknown."""
    kind: Any = CASE_TYPES["chain" if args.level == "scaling" else args.level]
    if not any(args.network in str(case) for case in LAYERS):
        parser.error(f"--network: no name contains {args.network!r}")
    known = {"peers": [*ALL_PEERS[kind.level]]}
    known["operations"] = [*kind.operations, *kind.more_operations]
    for option, names in known.items():
        for name in getattr(args, option):
            if name not in names:
                parser.error(f"--{option}: {name!r} is none of {', '.join(names)}")


def measure(argv: list[str], args: argparse.Namespace) -> report.Document:
    """All passes."""
    names = ("device", "rounds", "budget", "limit_seconds", "limit_gib", "small_channels")
    document: report.Document = {
        "command": shlex.join(["python", "scripts/benchmark.py", *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {name: getattr(args, name) for name in names} | {"allocator": KEEP_MEMORY},
    }
    print("allocator: keep", file=sys.stderr)
    if args.device == "cpu":
        touch_memory()
    document |= ask_worker(argv, "keep", [])
    if args.memory:
        add_memory(argv, document["results"])
    if not args.one_allocator:
        add_medians(argv, document["results"], "default_ms")
        ours = [row for row in document["results"] if row["peer"] == "paramixer"]
        if args.level == "chain" and ours:
            alone = ["--peers", "paramixer"]  # what others free would be ours for nothing
            add_medians(argv, ours, "huge_pages_ms", *alone)
            add_medians(argv, ours, "small_pages_ms", *alone, "--small-pages")
    return document


def add_medians(argv: list[str], rows: list[Row], name: str, *options: str) -> None:
    """Measures the cases of these records again with the default allocator, as figure `name`."""
    print(" ".join(["allocator: default", *options]), file=sys.stderr)
    touch_memory()
    key = lambda row: (row["case"], row["peer"], row["operation"])  # noqa: E731
    again = ask_worker(argv, "default", rows, "--no-memory", *options)["results"]
    medians = {key(row): row.get("median_ms") for row in again}
    for row in rows:
        row[name] = medians.get(key(row))


def main(argv: list[str]) -> int:
    """Measures or reads, and reports; 1 when a peer was wrong."""
    args = parse_arguments(argv)
    if args.worker:
        args.worker.write_text(json.dumps(work(args)))
        return 0
    document = json.loads(args.read.read_text()) if args.read else measure(argv, args)
    if args.json:
        report.write(document, args.json)
    report.report(document, args.markdown)
    if args.compare:
        old = json.loads(args.compare.read_text())["results"]
        report.show("changes", report.comparison(document["results"], old), args.markdown)
    if args.plot:
        (plots.scaling if args.level in AGAINST_LENGTH else plots.roofline)(document, args.plot)
    return int(any(row["failure"].startswith("wrong") for row in document["results"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
