"""What a chain keeps for its backward pass, and what it needs on the way, as the system counts it.

Hooks on saved tensors miss what a node hides, and PyTorch's own counters what a kernel allocates
past its allocator. So this measures the resident memory of a process of its own, with tensors that
are large beside everything else in it and an allocator that gives blocks back when they are freed.
"""

import ctypes
import gc
import json
import os
import pathlib
import re
import subprocess
import sys

import paramixer
import pytest
import torch
from paramixer import reference

LENGTH, CHANNELS, FACTORS, LINKS = 32768, 128, 7, 3  # V has 16 MiB
OFFSETS = [[0, 3**m, -(3**m)] for m in range(FACTORS)]
VALUE_BYTES = 4 * LENGTH * CHANNELS
WEIGHT_BYTES = 4 * LENGTH * FACTORS * LINKS
SLACK = 0.15  # of V: tables of a chain's offsets, thread stacks, the process itself

# Tensors of V's size that a pass may need beside its operands and results, and beside its scratch.
FORWARD_WORKSPACE = BACKWARD_WORKSPACE = 2
# A thread makes its scratch in its first pass and keeps it: N rows of 64 channels for two states in
# forward, N rows of 16 channels for M - 1 states, two gradients and the sum that the residual
# "initial" wants in backward (fewer where the classes of a protocol part), and a sweep's weights.
THREADS = 2
FORWARD_SCRATCH = 4 * LENGTH * (2 * 64 + 2 * LINKS)
BACKWARD_SCRATCH = 4 * LENGTH * ((FACTORS + 2) * 16 + 2 * LINKS)


def resident(field):
    """VmRSS or VmHWM, its highest value since `reset_peak`, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def operands():
    weight = torch.randn(1, LENGTH, FACTORS, LINKS) / LINKS**0.5
    return weight.requires_grad_(), torch.randn(1, LENGTH, CHANNELS).requires_grad_()


def train(leaves, residual, save):
    """Bytes that live between forward and backward, and the peaks of the two."""
    gc.collect()
    grad = torch.ones(1, LENGTH, CHANNELS)
    before = resident("VmRSS")
    reset_peak()
    inputs = [leaf * 1 for leaf in leaves]  # so that what holds on to them is counted
    result = paramixer.mix_chain(*inputs, OFFSETS, residual, save)
    forward = resident("VmHWM") - before - WEIGHT_BYTES - VALUE_BYTES
    node = result.grad_fn
    del inputs, result
    live = resident("VmRSS") - before
    reset_peak()
    with torch.no_grad():  # as the engine calls it
        gradients = node(grad)
    backward = resident("VmHWM") - before - live
    del gradients
    return {"live": live, "forward": forward, "backward": backward}


def infer(leaves, residual):
    """Bytes that live beside the result without gradients, and the peak with it."""
    with torch.inference_mode():
        before = resident("VmRSS")
        reset_peak()
        result = paramixer.mix_chain(*leaves, OFFSETS, residual)
        peak = resident("VmHWM") - before
        live = resident("VmRSS") - before - VALUE_BYTES
    del result
    return {"live": live, "forward": peak}


def measure(residual):
    """All measurements: of first passes, which make the scratch, and of later ones."""
    torch.set_num_threads(THREADS)
    shapes = [(THREADS, 8, 1, 1), (THREADS, 8, 8)]
    small = [torch.ones(shape, requires_grad=True) for shape in shapes]
    paramixer.mix_chain(*small, [[0]], residual).sum().backward()  # loads code, starts threads
    leaves = operands()
    return [
        {
            "boundaries": train(leaves, residual, "boundaries"),
            "input": train(leaves, residual, "input"),
            "inference": infer(leaves, residual),
        }
        for _ in range(2)
    ]


def run_alone(call, **environment):
    """What `call` to this module returns in a process of its own."""
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); import test_chain_memory as t; "
    process = subprocess.run(
        [sys.executable, "-c", f"{code}print(json.dumps(t.{call}))", os.path.dirname(__file__)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if "clear_refs" in process.stderr:
        pytest.skip("this kernel does not let a process reset its peak memory")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module", params=reference.RESIDUALS)
def measured(request):
    return run_alone(
        f"measure({request.param!r})", MALLOC_MMAP_THRESHOLD_="1048576", MALLOC_ARENA_MAX="1"
    )


def in_values(size):
    return size / VALUE_BYTES


def test_training_keeps_the_weight_and_at_most_three_values(measured):
    kept = measured[1]["boundaries"]["live"] - WEIGHT_BYTES
    assert 1 - SLACK <= in_values(kept) <= 3 + SLACK


def test_training_keeps_the_weight_and_the_value_alone(measured):
    kept = measured[1]["input"]["live"] - WEIGHT_BYTES
    assert 1 - SLACK <= in_values(kept) <= 1 + SLACK


def test_inference_keeps_nothing(measured):
    assert abs(in_values(measured[1]["inference"]["live"])) <= SLACK


@pytest.mark.parametrize("mode", ["boundaries", "input", "inference"])
def test_workspace_of_forward(measured, mode):
    first, later = (in_values(one[mode]["forward"] - VALUE_BYTES) for one in measured)
    assert -SLACK <= later <= FORWARD_WORKSPACE + SLACK
    assert first <= FORWARD_WORKSPACE + THREADS * in_values(FORWARD_SCRATCH) + SLACK


@pytest.mark.parametrize("mode", ["boundaries", "input"])
def test_workspace_of_backward(measured, mode):
    gradients = WEIGHT_BYTES + VALUE_BYTES
    first, later = (in_values(one[mode]["backward"] - gradients) for one in measured)
    assert -SLACK <= later <= BACKWARD_WORKSPACE + SLACK
    assert first <= BACKWARD_WORKSPACE + THREADS * in_values(BACKWARD_SCRATCH) + SLACK


def huge_share(tensor):
    """The share of a tensor's mapping that lies in huge pages."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    with open("/proc/self/smaps") as mappings:
        for line in mappings:
            bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if bounds:
                begin, end = (int(bound, 16) for bound in bounds.groups())
                inside = begin <= middle < end
            elif inside and line.startswith("AnonHugePages:"):
                return int(line.split()[1]) * 1024 / (end - begin)
    raise ValueError("no mapping holds the tensor")


def huge_pages():
    """The shares of the fresh outputs of a chain, forward and backward."""
    weight = torch.randn(4, LENGTH, FACTORS, LINKS, requires_grad=True)
    value = torch.randn(4, LENGTH, CHANNELS, requires_grad=True)
    result = paramixer.mix_chain(weight, value, OFFSETS)
    gradients = torch.autograd.grad(result.sum(), [weight, value])
    outputs = {"result": result, "weight": gradients[0], "value": gradients[1]}
    return {name: huge_share(output) for name, output in outputs.items()}


def test_large_outputs_lie_in_huge_pages():
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this kernel gives no transparent huge pages")
    shares = run_alone("huge_pages()")
    assert min(shares.values()) > 0.5, shares
