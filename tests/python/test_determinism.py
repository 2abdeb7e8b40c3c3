"""Bit for bit the same: from run to run, for any number of threads; and every instruction set."""

import os
import subprocess
import sys
from functools import partial

import paramixer
import pytest
import torch
from paramixer import links
from support import (
    DTYPES,
    OPERATOR_IDS,
    OPERATORS,
    assert_as_exact_as_torch,
    forward_and_gradients,
    relative_error,
    results_of_instruction_set,
)

OFFSETS = [0, 1, -700, 64, 3]


def results(operator, dtype):
    """Result and gradients of a problem that is large enough to be shared over threads."""
    torch.manual_seed(1)
    operands = [operand.to(dtype) for operand in operator.operands((3,), 1000, 70, 5)]
    grad = torch.randn(operator.function(*operands, OFFSETS).shape)
    return forward_and_gradients(operator.function, operands, OFFSETS, grad)


@pytest.fixture
def _restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("_restore_threads")
def test_threads_and_runs(operator, dtype):
    torch.set_num_threads(1)
    expected = results(operator, dtype)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for actual, once in zip(results(operator, dtype), expected, strict=True):
            assert torch.equal(actual, once)


@pytest.mark.parametrize("length", [2048, 2047])
@pytest.mark.parametrize("protocol", [links.cdil, partial(links.cdil, links=5), links.chord])
@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
@pytest.mark.usefixtures("_restore_threads")
def test_one_batch_item_on_several_threads(length, protocol, residual):
    offsets = protocol(length)
    weight = 0.3 * torch.randn(length, len(offsets), len(offsets[0]))
    value, grad = torch.randn(2, length, 20)

    def results():
        operands = [operand.requires_grad_() for operand in (weight, value)]
        result = paramixer.mix_chain(*operands, offsets, residual=residual)
        return result.detach(), *torch.autograd.grad(result, operands, grad)

    torch.set_num_threads(1)
    expected = results()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
def test_runs_on_cuda(operator):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    operands = operator.operands((3,), 1000, 70, 5, device="cuda")
    grad = torch.randn_like(operator.function(*operands, OFFSETS))
    first, *others = (
        forward_and_gradients(operator.function, operands, OFFSETS, grad) for _ in range(3)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_deterministic_algorithms_are_the_only_ones():
    torch.use_deterministic_algorithms(True)
    try:
        results(OPERATORS[0], torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)


def all_results():
    """Result and gradients of every operator and dtype."""
    return {
        (name, dtype): results(operator, dtype)
        for name, operator in zip(OPERATOR_IDS, OPERATORS, strict=True)
        for dtype in DTYPES
    }


def test_instruction_sets(tmp_path):
    baseline, avx2 = (
        results_of_instruction_set("test_determinism", name, tmp_path / name)
        for name in ("baseline", "avx2")
    )
    for name, operator in zip(OPERATOR_IDS, OPERATORS, strict=True):
        for dtype in DTYPES:
            here = results(operator, dtype)
            exact = results(operator, torch.float64)
            for mine, portable, theirs, truth in zip(
                here, baseline[name, dtype], avx2[name, dtype], exact, strict=True
            ):
                # The operands were rounded to the dtype before the float64 sums: compare loosely.
                assert relative_error(mine, truth) <= 10 * torch.finfo(dtype).eps
                assert_as_exact_as_torch(portable, mine, mine.double(), "baseline")
                assert (
                    torch.equal(theirs, mine) or paramixer._load.cpu_instruction_set() == "baseline"
                )


def test_unknown_instruction_set():
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch, paramixer; paramixer.mix(torch.ones(3, 1), torch.ones(3, 1), [0])",
        ],
        env={**os.environ, "PARAMIXER_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0
    assert (
        "PARAMIXER_CPU_ISA must name an instruction set this processor supports" in process.stderr
    )
    assert "(got mmx)" in process.stderr
