"""What a chain keeps for its backward pass, and what it needs on the way, as the system counts it.

Hooks on saved tensors miss what a node hides, and PyTorch's own counters what a kernel allocates
past its allocator. So this measures the resident memory of a process of its own, with tensors that
are large beside everything else in it and an allocator that gives blocks back when they are freed.
"""

import ctypes
import gc
import json
import os
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

# Tensors of V's size that a pass may need beside its operands and results.
FORWARD_WORKSPACE = 2
# One product after the other computes all states again before it walks back over them; a fused
# backward pass has to do with two.
BACKWARD_WORKSPACE = FACTORS - 1


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


def measure():
    """All measurements, by residual and mode; the first pass of each fills what is kept for all."""
    leaves = operands()
    measured = {}
    for residual in reference.RESIDUALS:
        for _ in range(2):
            measured[residual] = {
                "boundaries": train(leaves, residual, "boundaries"),
                "input": train(leaves, residual, "input"),
                "inference": infer(leaves, residual),
            }
    return measured


@pytest.fixture(scope="module")
def measured():
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); import test_chain_memory as t; "
    code += "print(json.dumps(t.measure()))"
    process = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    if "clear_refs" in process.stderr:
        pytest.skip("this kernel does not let a process reset its peak memory")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def in_values(size):
    return size / VALUE_BYTES


per_residual = pytest.mark.parametrize("residual", reference.RESIDUALS)


@per_residual
def test_training_keeps_the_weight_and_at_most_three_values(measured, residual):
    kept = measured[residual]["boundaries"]["live"] - WEIGHT_BYTES
    assert 1 - SLACK <= in_values(kept) <= 3 + SLACK


@per_residual
def test_training_keeps_the_weight_and_the_value_alone(measured, residual):
    kept = measured[residual]["input"]["live"] - WEIGHT_BYTES
    assert 1 - SLACK <= in_values(kept) <= 1 + SLACK


@per_residual
def test_inference_keeps_nothing(measured, residual):
    assert abs(in_values(measured[residual]["inference"]["live"])) <= SLACK


@per_residual
@pytest.mark.parametrize("mode", ["boundaries", "input", "inference"])
def test_workspace_of_forward(measured, residual, mode):
    workspace = in_values(measured[residual][mode]["forward"] - VALUE_BYTES)
    assert -SLACK <= workspace <= FORWARD_WORKSPACE + SLACK


@per_residual
@pytest.mark.parametrize("mode", ["boundaries", "input"])
def test_workspace_of_backward(measured, residual, mode):
    gradients = WEIGHT_BYTES + VALUE_BYTES
    workspace = in_values(measured[residual][mode]["backward"] - gradients)
    assert -SLACK <= workspace <= BACKWARD_WORKSPACE + SLACK
