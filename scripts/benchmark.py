#!/usr/bin/env python3
"""Times the operators of paramixer beside other ways to compute the same product.

A *case* is one factor at one shape: W (B, N, K), V (B, N, D), offsets o. Every *peer* computes

    mix       Y[i,c] = sum_k W[i,k] V[(i + o_k) mod N, c]    reads W and V, writes Y
    backward  dW and dV of mix for a given G = dY            reads G, V and W, writes dV and dW

and is checked against `paramixer.reference` in float64 first. The peers of a case take turns in
rounds, so that a busy machine disturbs them alike. "of copy" compares with a copy of as many bytes
between two existing tensors, in the same rounds with the same threads: 100 % is the speed limit
that the minimal traffic sets.

On the CPU, page faults of fresh memory decide the times of large tensors. The figures are therefore
taken in a process whose allocator keeps freed memory (MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=1000000000000); a second process with the default allocator gives those
beside them.

    python scripts/benchmark.py --markdown                        the table of the README
    python scripts/benchmark.py --peers paramixer --factors all   every factor, this library alone
    python scripts/benchmark.py --small-channels                  nanoseconds per byte, D = 1 to 128
    python scripts/benchmark.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import paramixer
import torch
from paramixer import info, reference
from torch import Tensor

SHAPES = [(32, 1024, 64), (16, 4096, 64), (8, 16384, 128)]
SMALL_CHANNELS = [1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 33, 100, 128]
SMALL_CHANNELS_SHAPE = (4, 16384, 128)  # every row of that table moves the bytes of this one

# How many tensors like V and like W each operation reads or writes at least.
TRAFFIC = {"mix": (2, 1), "backward": (3, 2), "mix_transpose": (2, 1), "link_dot": (2, 1)}
# Relative 2-norm, wide enough for peers that round every term of the sum to the dtype.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}

Inputs = tuple[Tensor, Tensor, Tensor]  # W, V and G of a case
Calls = dict[str, "Call"]  # by operation
Row = dict[str, Any]  # what one task gave
Lines = list[list[str]]  # a table, its header first

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
SLICE_SECONDS, SLICE_CALLS = 0.03, 20  # one round repeats a fast call for so long, so often
MIN_CUDA_CALLS = 50
CUDA_FLUSH_BYTES = 512 << 20


@dataclass(frozen=True)
class Case:
    """Factor m of M of a protocol at a shape (B, N, D)."""

    shape: tuple[int, int, int]
    protocol: str
    factor: int
    factors: int
    offsets: tuple[int, ...]

    def __str__(self) -> str:
        place = f" m={self.factor} of {self.factors}" if self.protocol == "cdil" else ""
        return f"{self.shape} {self.protocol.upper()} K={len(self.offsets)}{place}"

    def bytes(self, operation: str, dtype: str) -> int:
        """The minimal traffic."""
        batch, length, channels = self.shape
        values, weights = TRAFFIC[operation]
        per_row = values * channels + weights * len(self.offsets)
        return batch * length * per_row * getattr(torch, dtype).itemsize


def make_inputs(case: Case, args: argparse.Namespace) -> Inputs:
    """Random W (B, N, K), V (B, N, D) and G (B, N, D)."""
    torch.manual_seed(0)
    columns = (len(case.offsets), case.shape[2], case.shape[2])
    options = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    weight, value, grad = (torch.randn(*case.shape[:2], c, **options) for c in columns)
    return weight, value, grad


def protocol_cases(shape: tuple[int, int, int], protocol: str, links: int) -> list[Case]:
    """The different factors of a protocol; those of chord are all alike."""
    chord = protocol == "chord"
    length = shape[1]
    factors = paramixer.links.chord(length) if chord else paramixer.links.cdil(length, links=links)
    cases = [Case(shape, protocol, m, len(factors), tuple(o)) for m, o in enumerate(factors)]
    return cases[:1] if chord else cases


def choose(cases: list[Case], name: str, args: argparse.Namespace) -> list[Case]:
    """The factors called `name`; the slowest is found by a short run of `mix` alone."""
    if name == "all" or len(cases) == 1:
        return cases
    if name != "slowest":
        return [cases[len(cases) // 2 if name == "middle" else int(name)]]
    inputs = make_inputs(cases[0], args)
    tasks = [Task(c, "paramixer", "mix", paramixer_calls(c, inputs)["mix"]) for c in cases]
    Runner(args.device, rounds=5, budget=0.1).measure(tasks)
    return [max(tasks, key=lambda task: statistics.median(task.seconds)).case]


def small_channel_cases(args: argparse.Namespace) -> list[Case]:
    """The middle factor of cdil at every small D, with as many batch items as give equal bytes."""
    batch, length, channels = SMALL_CHANNELS_SHAPE
    total = batch * (2 * channels + args.links)
    shapes = [(round(total / (2 * d + args.links)), length, d) for d in SMALL_CHANNELS]
    factors = [protocol_cases(shape, "cdil", args.links) for shape in shapes]
    return [cases[len(cases) // 2] for cases in factors]


def make_groups(args: argparse.Namespace) -> list[list[Case]]:
    """The cases that the options ask for, each once; those of a group take turns."""
    if args.small_channels:
        return [small_channel_cases(args)]
    if args.cases:
        return [[Case(tuple(s), p, m, f, tuple(o))] for s, p, m, f, o in args.cases]
    chosen: dict[Case, None] = {}
    for shape in args.shapes:
        for protocol in args.protocols:
            cases = protocol_cases(shape, protocol, args.links)
            chosen |= dict.fromkeys(c for name in args.factors for c in choose(cases, name, args))
    return [[case] for case in chosen]


class Call(NamedTuple):
    """What is timed: run(prepare()), without the time of prepare."""

    run: Callable[[Any], Tensor | tuple[Tensor, ...]]
    prepare: Callable[[], Any] = lambda: None


def by_autograd(forward: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> Calls:
    """`mix` is forward(W, V) without a graph, `backward` autograd's pass through it alone."""
    *operands, grad = inputs
    leaves = [x.detach().requires_grad_() for x in operands]
    return {
        "mix": Call(torch.no_grad()(lambda _: forward(*operands))),
        "backward": Call(lambda y: torch.autograd.grad(y, leaves, grad), lambda: forward(*leaves)),
    }


def paramixer_calls(case: Case, inputs: Inputs) -> Calls:
    """This library; its backward is one fused sweep."""
    weight, value, grad = inputs
    offsets = list(case.offsets)
    return by_autograd(lambda w, v: paramixer.mix(w, v, offsets), inputs) | {
        "mix_transpose": Call(lambda _: paramixer.mix_transpose(weight, value, offsets)),
        "link_dot": Call(lambda _: paramixer.link_dot(grad, value, offsets)),
    }


def rolled_sum(weight: Tensor, value: Tensor, offsets: tuple[int, ...]) -> Tensor:
    """`mix` by a torch.roll, a product and a sum per link."""
    total = weight[..., :1] * torch.roll(value, -offsets[0], -2)
    for k, offset in enumerate(offsets[1:], 1):
        total = total + weight[..., k : k + 1] * torch.roll(value, -offset, -2)
    return total


def roll_calls(case: Case, inputs: Inputs) -> Calls:
    """Plain PyTorch."""
    return by_autograd(lambda w, v: rolled_sum(w, v, case.offsets), inputs)


def compiled_roll_calls(case: Case, inputs: Inputs) -> Calls:
    """torch.compile of the roll form; with fullgraph it raises at the recompilation limit."""
    from torch._dynamo.utils import counters  # seconds to import

    torch._dynamo.reset()  # the limit counts the recompilations of all shapes together
    counters.clear()
    function = torch.compile(rolled_sum, fullgraph=True, dynamic=False)
    calls = by_autograd(lambda w, v: function(w, v, case.offsets), inputs)
    calls["mix"].run(None)
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("fell back to eager")
    return calls


def csr_calls(case: Case, inputs: Inputs) -> Calls:
    """torch.sparse: the batch as one block-diagonal CSR matrix; patterns are made beforehand.

    Autograd of the product makes a dense (B*N, B*N) gradient, so backward is what a careful user
    writes instead: the transposed matrix times G, and sampled_addmm for dW.
    """
    (batch, length, channels), width = case.shape, len(case.offsets)
    rows, device = batch * length, inputs[0].device
    ring = torch.arange(length, device=device)[:, None] + torch.tensor(case.offsets, device=device)
    blocks = length * torch.arange(batch, device=device)[:, None, None]
    columns = (ring % length + blocks).flatten()
    order = columns.argsort(stable=True)
    starts = torch.arange(0, rows * width + 1, width, device=device, dtype=torch.int32)
    columns, transposed = columns.int(), (order // width).int()
    weight, value, grad = inputs[0].flatten(), *(x.view(rows, channels) for x in inputs[1:])

    def matrix(columns: Tensor, values: Tensor) -> Tensor:
        size = (rows, rows)
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)

    zeros = matrix(columns, torch.zeros_like(weight))

    def mix(_: None) -> Tensor:
        return (matrix(columns, weight) @ value).view(case.shape)

    def backward(_: None) -> tuple[Tensor, Tensor]:
        dots = torch.sparse.sampled_addmm(zeros, grad, value.t(), beta=0.0).values()
        result = matrix(transposed, weight[order]) @ grad
        return dots.view_as(inputs[0]), result.view(case.shape)

    return {"mix": Call(mix), "backward": Call(backward)}


def gather_scatter_calls(case: Case, inputs: Inputs) -> Calls:
    """What the published code does: gather a source row per link, multiply, scatter_add."""
    length, device = case.shape[1], inputs[0].device
    rows = torch.arange(length, device=device).repeat_interleave(len(case.offsets))
    columns = (rows + torch.tensor(case.offsets, device=device).repeat(length)) % length

    def forward(weight: Tensor, value: Tensor) -> Tensor:
        terms = weight.flatten(-2)[..., None] * value.index_select(-2, columns)
        return torch.zeros_like(value).scatter_add(-2, rows[:, None].expand_as(terms), terms)

    return by_autograd(forward, inputs)


PEERS: dict[str, Callable[[Case, Inputs], Calls]] = {
    "paramixer": paramixer_calls,
    "torch.compile(roll)": compiled_roll_calls,
    "torch.sparse CSR": csr_calls,
    "torch.roll": roll_calls,
    "gather-scatter_add": gather_scatter_calls,
}


def copy_call(size: int, like: Tensor) -> Call:
    """A copy that reads and writes `size` bytes together, between tensors that exist."""
    source = like.new_ones(size // like.element_size() // 2)
    target = torch.zeros_like(source)
    return Call(lambda _: target.copy_(source))


@dataclass
class Task:
    """One operation of one peer, and what became of it."""

    case: Case
    peer: str
    operation: str
    call: Call | None
    failure: str = ""
    error: float | None = None  # relative to the float64 reference
    fastest: float = math.inf  # seconds of a call with its preparation
    spent: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def spread(self) -> dict[str, float]:
        """Minimum and quartiles of the seconds."""
        several = self.seconds if len(self.seconds) > 1 else self.seconds * 2
        q1, median, q3 = statistics.quantiles(several, n=4, method="inclusive")
        return {"min": min(several), "q1": q1, "median": median, "q3": q3}


class Runner:
    """Times tasks in interleaved rounds; a task leaves once it has spent its budget of seconds."""

    def __init__(self, device: str, rounds: int, budget: float) -> None:
        self.rounds, self.budget, self.min_calls, self.flush = rounds, budget, 1, None
        if device != "cpu":
            self.rounds, self.min_calls = max(rounds, MIN_CUDA_CALLS), MIN_CUDA_CALLS
            self.flush = torch.empty(CUDA_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def measure(self, tasks: list[Task]) -> None:
        """Each turn is a call, or several of a fast one after a first that fills the caches."""
        for task in self.rounds * [task for task in tasks if task.call]:
            if task.spent < self.budget or len(task.seconds) < self.min_calls:
                calls = int(min(SLICE_CALLS, SLICE_SECONDS / max(task.fastest, 1e-6)))
                seconds = [self.timed(task) for _ in range(max(calls, 1) + (calls > 1))]
                task.seconds += seconds[calls > 1 :]

    def timed(self, task: Task) -> float:
        """Seconds of one call, without its preparation."""
        assert task.call is not None
        begin = time.perf_counter()
        state = task.call.prepare()
        if self.flush is None:
            start = time.perf_counter()
            task.call.run(state)
            seconds = time.perf_counter() - start
        else:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.flush.zero_()  # empties the L2 cache, and hides the time to launch the call
            events[0].record()
            task.call.run(state)
            events[1].record()
            events[1].synchronize()
            seconds = events[0].elapsed_time(events[1]) * 1e-3
        whole = time.perf_counter() - begin
        task.spent, task.fastest = task.spent + whole, min(task.fastest, whole)
        return seconds


def expected_results(case: Case, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
    """The reference in float64, for the first and the last item of the batch."""
    offsets = list(case.offsets)
    weight, value, grad = (x[[0, -1]].double() for x in inputs)
    dots = reference.link_dot(grad, value, offsets)
    return {
        "mix": (reference.mix(weight, value, offsets),),
        "backward": (dots, reference.mix_transpose(weight, grad, offsets)),
        "mix_transpose": (reference.mix_transpose(weight, value, offsets),),
        "link_dot": (dots,),
    }


def check(task: Task, expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Runs a task once; one that raises or is wrong keeps the reason and is not timed."""
    assert task.call is not None
    try:
        results = task.call.run(task.call.prepare())
        pairs = zip(results if isinstance(results, tuple) else (results,), expected, strict=True)
        errors = [(x[[0, -1]].double() - y).norm() / y.norm() for x, y in pairs]
        task.error = torch.stack(errors).max().item()  # a NaN comes through
        if not task.error <= tolerance:
            task.call, task.failure = None, f"wrong by {task.error:.1e}"
    except Exception as error:  # a peer may lack the dtype or the memory: that is its result
        task.call, task.failure = None, failure(error)


def failure(error: Exception) -> str:
    """What a table can hold of an exception."""
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"


def make_tasks(case: Case, args: argparse.Namespace) -> list[Task]:
    """Every operation of every peer of a case, checked, and the copies to compare with."""
    inputs = make_inputs(case, args)
    expected = expected_results(case, inputs)
    tasks = []
    for peer in args.peers:
        try:
            made = [Task(case, peer, *item) for item in PEERS[peer](case, inputs).items()]
        except Exception as error:
            made = [Task(case, peer, name, None, failure(error)) for name in ("mix", "backward")]
        tasks += made
        for task in made:
            if task.call:
                check(task, expected[task.operation], TOLERANCE[args.dtype])
    for name in ("mix", "backward"):
        size = case.bytes(name, args.dtype)
        tasks.append(Task(case, "copy", name, copy_call(size, inputs[1])))
    return tasks


def records(tasks: list[Task], dtype: str) -> Iterator[Row]:
    """One flat record per task."""
    times = {(t.case, t.peer, t.operation): t.spread() for t in tasks if t.seconds}
    for task in tasks:
        case, operation = task.case, task.operation
        row = {"case": str(case), **asdict(case), "peer": task.peer, "operation": operation}
        row |= {"bytes": case.bytes(operation, dtype), "calls": len(task.seconds)}
        row |= {"error": task.error, "failure": task.failure}
        if own := times.get((case, task.peer, operation)):
            copy = times[case, "copy", "backward" if operation == "backward" else "mix"]
            ours = times.get((case, "paramixer", operation))
            row |= {f"{name}_ms": seconds * 1e3 for name, seconds in own.items()}
            row["gb_per_s"] = row["bytes"] / own["median"] * 1e-9
            row["copy_ratio"] = copy["median"] / own["median"]
            row["copy_ratio_of_minima"] = copy["min"] / own["min"]  # a busy machine moves it less
            row["times_paramixer"] = own["median"] / ours["median"] if ours else None
        yield row


def run_pass(argv: list[str], allocator: str, rows: list[Row]) -> dict[str, Any]:
    """Runs this script as a worker under an allocator, a second time for the cases of `rows`."""
    environment = {k: v for k, v in os.environ.items() if k not in KEEP_MEMORY}
    environment |= KEEP_MEMORY if allocator == "keep" else {}
    cases = {row["case"]: [row[f.name] for f in fields(Case)] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        worker = ["--worker", str(answer), "--cases", json.dumps(list(cases.values()))]
        print(f"allocator: {allocator}", file=sys.stderr)
        subprocess.run([sys.executable, __file__, *argv, *worker], env=environment, check=True)
        document: dict[str, Any] = json.loads(answer.read_text())
        return document


def work(args: argparse.Namespace) -> dict[str, Any]:
    """What a worker does."""
    warnings.filterwarnings("ignore", message=".*[Ss]parse")  # CSR tensors are announced as beta
    facts, rows = machine(args.device), list[Row]()
    runner = Runner(args.device, args.rounds, args.budget)
    groups = make_groups(args)
    for number, group in enumerate(groups, 1):
        print(f"  {number} of {len(groups)}: {group[0]}", file=sys.stderr, flush=True)
        tasks = [task for case in group for task in make_tasks(case, args)]
        runner.measure(tasks)
        rows += records(tasks, args.dtype)
        del tasks  # their operands, before the next ones are made
    return {"machine": facts, "results": rows}


def machine(device: str) -> dict[str, str]:
    """Where the figures come from."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    facts = info.collect() | {"cpu": model[1] if model else "unknown"}
    facts |= {"cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    if device != "cpu":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return facts


def cell(row: Row | None, name: str, form: str = ".3g") -> str:
    """One figure of a record, a dash where it has none."""
    value = row.get(name) if row else None
    return "-" if value is None else format(value, form)


def milliseconds(row: Row) -> str:
    """The median, and in parentheses the one with the default allocator."""
    default = f" ({cell(row, 'default_ms')})" if "default_ms" in row else ""
    return row["failure"] or cell(row, "median_ms") + default


def case_tables(rows: list[Row]) -> Iterator[tuple[str, Lines]]:
    """Everything that was measured of one case, case by case."""
    head = "peer|operation|ms (default)|min|quartiles|calls|GB/s|of copy|minima|x paramixer"
    for case in dict.fromkeys(row["case"] for row in rows):
        lines = [head.split("|")]
        for row in (row for row in rows if row["case"] == case):
            line = [row["peer"], row["operation"], milliseconds(row), cell(row, "min_ms")]
            line += [f"{cell(row, 'q1_ms')}..{cell(row, 'q3_ms')}", str(row["calls"])]
            line += [cell(row, "gb_per_s", ".1f"), cell(row, "copy_ratio", ".0%")]
            line.append(cell(row, "copy_ratio_of_minima", ".0%"))
            lines.append([*line, cell(row, "times_paramixer", ".2f")])
        yield case, lines


def summary_table(rows: list[Row]) -> Lines:
    """A line per case and pass, a column per peer."""
    by_key = {(row["case"], row["peer"], row["operation"]): row for row in rows}
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    lines = [["case", "pass", *peers, "paramixer of copy"]]
    for case in dict.fromkeys(row["case"] for row in rows):
        for operation, name in {"mix": "forward", "backward": "backward"}.items():
            found = [by_key[case, peer, operation] for peer in peers]
            ours = by_key.get((case, "paramixer", operation))
            line = [case, name, *map(milliseconds, found)]
            lines.append([*line, cell(ours, "copy_ratio", ".0%")])
    return lines


def small_channel_table(rows: list[Row]) -> Lines:
    """A line per D, a column per operation."""
    ours = [row for row in rows if row["peer"] == "paramixer"]
    cost = {(r["shape"][2], r["operation"]): r["median_ms"] * 1e6 / r["bytes"] for r in ours}
    lines = [["D", *TRAFFIC]]
    for width in SMALL_CHANNELS:
        pairs = [(cost[width, name], cost[128, name]) for name in TRAFFIC]
        lines.append([str(width), *(f"{own:.4f} ({own / widest:.2f})" for own, widest in pairs)])
    return lines


def show(title: str, lines: Lines, markdown: bool) -> None:
    """Prints a table, with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        markdown = True
    if not markdown:
        table = Table(*lines[0], title=title, title_justify="left")
        for line in lines[1:]:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}\n")
    for line in [lines[0], ["-" * width for width in widths], *lines[1:]]:
        print("| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |")


def report(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Prints what the options ask for."""
    rows = document["results"]
    if args.small_channels:
        title = "nanoseconds per byte (over those of D = 128)"
        show(title, small_channel_table(rows), args.markdown)
    else:
        for title, lines in [] if args.markdown else case_tables(rows):
            show(title, lines, args.markdown)
        title = "milliseconds" + " (default allocator)" * ("default_ms" in rows[0])
        show(title, summary_table(rows), args.markdown)
    facts = ", ".join(f"{name} {fact}" for name, fact in document["machine"].items())
    print(f"\n{document['command']}\n{args.dtype} on {args.device}: {facts}")
    print(f"Medians of interleaved rounds; {args.budget:g} s each, so slow ones have few calls.")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    shape = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    add("--shapes", type=shape, nargs="+", default=SHAPES, metavar="B,N,D")
    add("--protocols", nargs="+", default=["chord", "cdil"], choices=["chord", "cdil"])
    add("--links", type=int, default=3, help="K of cdil (default 3)")
    text = "factors of cdil: numbers, middle, slowest, all (default middle slowest)"
    add("--factors", nargs="+", default=["middle", "slowest"], metavar="M", help=text)
    add("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    add("--dtype", default="float32", choices=list(TOLERANCE))
    add("--device", default="cpu")
    add("--rounds", type=int, default=15)
    add("--budget", type=float, default=0.5, help="seconds per entry and allocator (default 0.5)")
    add("--one-allocator", action="store_true", help="leave out the default allocator")
    add("--small-channels", action="store_true", help="the table over D instead")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--markdown", action="store_true", help="print the table of the README only")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    add("--cases", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.small_channels:
        args.peers, args.one_allocator = ["paramixer"], True
    return args


def main(argv: list[str]) -> int:
    """Runs the passes and reports them; 1 when a peer was wrong."""
    args = parse_arguments(argv)
    if args.worker:
        args.worker.write_text(json.dumps(work(args)))
        return 0
    document = {
        "command": shlex.join(["python", "scripts/benchmark.py", *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {"dtype": args.dtype, "device": args.device, "allocator": KEEP_MEMORY},
    } | run_pass(argv, "keep", [])
    rows = document["results"]
    if args.device == "cpu" and not args.one_allocator:
        for row, default in zip(rows, run_pass(argv, "default", rows)["results"], strict=True):
            row["default_ms"] = default.get("median_ms")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    report(args, document)
    return int(any(row["failure"].startswith("wrong") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
