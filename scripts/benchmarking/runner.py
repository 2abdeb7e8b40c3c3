"""Checks the peers of a case and times them in interleaved rounds.

"of copy" compares with a copy of as many bytes between two existing tensors, "of FMA peak" with the
multiply-adds of the fastest call of a large float32 torch.mm, both in the same rounds with the same
threads. (On CPUs torch.mm reaches about three quarters of what the arithmetic units alone can do.)
"""

from __future__ import annotations

import gc
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarking.cases import ChainCase, FactorCase, RotationCase, outer_items
from benchmarking.layers import LAYER_PEERS, LayerCase
from benchmarking.mixers import MIXER_PEERS, MixerCase
from benchmarking.peers import PEERS, UNCHECKED, Call, Calls, Skipped

Case = FactorCase | ChainCase | RotationCase | LayerCase | MixerCase
Row = dict[str, Any]  # a record: what one task gave

ALL_PEERS: dict[str, dict[str, Callable[[Any, Any], Calls]]] = {
    **PEERS,
    "layer": LAYER_PEERS,
    "mixers": MIXER_PEERS,
}
REFERENCES = ("copy", "torch.mm")  # not peers, but measures
# Relative 2-norm, wide enough for peers that round every term of the sum to the dtype.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
SLICE_SECONDS, SLICE_CALLS = 0.03, 20  # one round repeats a fast call for so long, so often
MIN_CUDA_CALLS = 50
CUDA_FLUSH_BYTES = 512 << 20


def default_peers(level: str, device: str) -> list[str]:
    """Those that can run here."""
    absent = set()
    if importlib.util.find_spec("torch_sparse") is None:
        absent.add("torch_sparse")
    if device == "cpu" or importlib.util.find_spec("triton") is None:
        absent.add("triton")
    return [name for name in ALL_PEERS[level] if name not in absent]


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

    def fail(self, reason: str) -> None:
        """Keeps the reason, and is not timed any more."""
        self.call, self.failure, self.seconds = None, reason, []
        gc.collect()  # what a failed call leaves is often part of a cycle

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
            more = task.spent < self.budget or len(task.seconds) < self.min_calls
            if task.call and more:
                calls = int(min(SLICE_CALLS, SLICE_SECONDS / max(task.fastest, 1e-6)))
                try:
                    seconds = [self.timed(task) for _ in range(max(calls, 1) + (calls > 1))]
                    task.seconds += seconds[calls > 1 :]
                except Exception as error:  # between other peers memory may be too short
                    task.fail(failure(error))

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


def failure(error: Exception) -> str:
    """What a table can hold of an exception."""
    if isinstance(error, Skipped):
        return f"skipped: {error}"
    if "allocate memory" in str(error) or isinstance(error, MemoryError):
        return "failed: out of memory"
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"


def check(task: Task, expected: tuple[Tensor, ...] | None) -> None:
    """Runs a task once; one that raises or is wrong keeps the reason and is not timed."""
    assert task.call is not None
    try:
        results = task.call.run(task.call.prepare())
        if expected is None or task.peer in UNCHECKED:
            return
        pairs = zip(results if isinstance(results, tuple) else (results,), expected, strict=True)
        errors = [(outer_items(x).double() - y).norm() / y.norm() for x, y in pairs]
        task.error = torch.stack(errors).max().item()  # a NaN comes through
        if not task.error <= TOLERANCE[task.case.dtype]:
            task.fail(f"wrong by {task.error:.1e}")
    except Exception as error:  # a peer may lack the dtype or the memory: that is its result
        task.fail(failure(error))


def peer_tasks(case: Case, peer: str, operations: Sequence[str], inputs: Any) -> list[Task]:
    """A peer's tasks, of those operations that it has; not checked yet."""
    try:
        calls = ALL_PEERS[case.level][peer](case, inputs)
    except Exception as error:
        names = [name for name in case.operations if name in operations]
        return [Task(case, peer, name, None, failure(error)) for name in names]
    return [Task(case, peer, name, calls[name]) for name in operations if name in calls]


def reference_tasks(case: Case, operations: Sequence[str]) -> list[Task]:
    """Copies of the minimal traffic, between tensors that exist, and the FMA probe."""
    tasks = []
    for name in [name for name in case.operations if name in operations]:
        if size := case.bytes(name):
            source = torch.ones(size // 8, device=case.device)  # half is read, half written
            target = torch.zeros_like(source)
            copy = Call(lambda _, target=target, source=source: target.copy_(source))
            tasks.append(Task(case, "copy", name, copy))
    size = probe_size(case)
    left, right = (torch.randn(size, size, device=case.device) for _ in range(2))
    tasks.append(Task(case, "torch.mm", "probe", Call(lambda _: left @ right)))
    for task in tasks:
        check(task, None)  # the peers had a call before they are timed, too
    return tasks


def probe_size(case: Case) -> int:
    """Rows and columns of the matrices in the FMA probe."""
    return 1024 if case.device == "cpu" else 8192


def make_tasks(
    case: Case,
    peers: Sequence[str],
    operations: Sequence[str],
    stopped: Mapping[tuple[str, str], str],
) -> list[Task]:
    """The operations of every peer of a case, checked, and the references.

    Those in `stopped`, by peer and operation, are not called, for the reason given there.
    """
    inputs: Any = case.inputs()
    references = reference_tasks(case, operations)  # first: a peer may do without memory, these not
    expected = case.expected(inputs)
    tasks = []
    for peer in peers:
        wanted = [name for name in operations if (peer, name) not in stopped]
        made = peer_tasks(case, peer, wanted, inputs) if wanted else []
        for task in made:
            if task.call:
                check(task, expected.get(task.operation))
        tasks += made
    tasks += [Task(case, *key, None, reason) for key, reason in stopped.items()]
    return tasks + references


def records(tasks: list[Task]) -> Iterator[Row]:
    """One flat record per task."""
    times = {(t.case, t.peer, t.operation): t.spread() for t in tasks if t.seconds}
    for task in tasks:
        case, operation = task.case, task.operation
        row = {"level": case.level, "case": str(case), **asdict(case)}
        row |= {"peer": task.peer, "operation": operation, "calls": len(task.seconds)}
        row |= {"failure": task.failure, "error": task.error}
        if own := times.get((case, task.peer, operation)):
            row |= {f"{name}_ms": seconds * 1e3 for name, seconds in own.items()}
            row |= figures(task, own["median"], own["min"], times)
        yield row


def figures(task: Task, median: float, fastest: float, times: dict[Any, Row]) -> Row:
    """What times, traffic and work give together; nothing of that for another function."""
    case, operation = task.case, task.operation
    row: Row = {}
    if ours := times.get((case, "paramixer", operation)):
        row["times_paramixer"] = median / ours["median"]
    if task.peer in UNCHECKED:
        return row
    work = probe_size(case) ** 3 if task.peer == "torch.mm" else case.multiply_adds(operation)
    if task.peer != "copy" and work is not None:
        row |= {"multiply_adds": work, "gfma_per_s": work / median * 1e-9}
        fastest_probe = times[case, "torch.mm", "probe"]["min"]
        row["peak_share"] = work / median * fastest_probe / probe_size(case) ** 3
    size = None if task.peer == "torch.mm" else case.bytes(operation)
    name = "forward" if operation in ("mix_transpose", "link_dot") else operation
    if size and (copy := times.get((case, "copy", name))):
        row |= {"bytes": size, "gb_per_s": size / median * 1e-9}
        row["copy_ratio"] = copy["median"] / median
        row["copy_ratio_of_minima"] = copy["min"] / fastest  # a busy machine moves it less
    return row


def slowest(cases: list[FactorCase]) -> FactorCase:
    """Found by a short run of `mix` alone."""
    inputs = cases[0].inputs()
    tasks = [t for c in cases for t in peer_tasks(c, "paramixer", ["forward"], inputs)]
    Runner(cases[0].device, rounds=5, budget=0.1).measure(tasks)
    best = max(tasks, key=lambda task: statistics.median(task.seconds)).case
    assert isinstance(best, FactorCase)
    return best
