"""The peak memory of a peer, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarking.peers import COMPILED, Call
from benchmarking.runner import Case, peer_tasks


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, such as VmRSS."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class MemoryMeter:
    """Peak memory of calls above the state at construction: resident on CPU, allocated on CUDA."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.release()
        self.before = torch.cuda.memory_allocated() if self.cuda else status_bytes("VmRSS")

    @staticmethod
    def release() -> None:
        """Gives freed memory back, so that the next call has to take it anew."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def peak(self, call: Call) -> int:
        """Bytes at the highest moment of a call, its preparation included."""
        self.release()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        result = call.run(call.prepare())
        highest = torch.cuda.max_memory_allocated() if self.cuda else status_bytes("VmHWM")
        del result
        return highest - self.before


def peak_memory(case: Case, peer: str, operations: Sequence[str]) -> dict[str, int]:
    """Bytes of each operation, in a process that measures nothing else.

    The state before is the one with the operands and index tables of a factor or chain, and the one
    before anything was made for a layer. A call on a small case, which does not count, loads the
    libraries; where the first call compiles, it does not count either.
    """
    for task in peer_tasks(case.small(), peer, operations, case.small().inputs()):
        if task.call:
            task.call.run(task.call.prepare())
    meter = MemoryMeter(case.device)
    tasks = peer_tasks(case, peer, operations, case.inputs())
    if peer in COMPILED:
        for task in tasks:
            if task.call:
                task.call.run(task.call.prepare())
    if case.level != "layer":
        meter = MemoryMeter(case.device)
    repeats = 2 if case.level == "layer" else 1  # the first step makes Adam's state
    return {
        task.operation: max(meter.peak(task.call) for _ in range(repeats))
        for task in tasks
        if task.call
    }
