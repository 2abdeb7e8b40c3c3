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

# Tensors of V's size that a pass may need beside its operands and results, and beside its scratch.
FORWARD_WORKSPACE = BACKWARD_WORKSPACE = 2
# A thread keeps its scratch from pass to pass: rows of the ring for a group of channels, and one
# sweep's weights. Forward has two states; backward all of them, two gradients and, for the residual
# "initial", a sum of gradients, but so narrow a group that all of it is no more than V where 16
# channels allow that.
THREADS = 2
FORWARD_SCRATCH = 4 * LENGTH * (2 * 32 + 2 * LINKS)
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
    """All measurements of a first pass, which makes the scratch, and of a second, which has it."""
    torch.set_num_threads(THREADS)
    paramixer.mix_chain(*[torch.ones(THREADS, 64, 64, requires_grad=True) for _ in "v"], [[0]])
    leaves = operands()
    return [
        {
            "boundaries": train(leaves, residual, "boundaries"),
            "input": train(leaves, residual, "input"),
            "inference": infer(leaves, residual),
        }
        for _ in range(2)
    ]


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
