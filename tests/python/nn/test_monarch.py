"""Monarch against its entries in loops, and what its projection is known to reach."""

import re

import pytest
import torch
from paramixer.nn import Monarch, monarch_matrix, project_monarch
from support import close


def make(length=12, heads=2, dtype=torch.float64):
    torch.manual_seed(0)
    return Monarch(8, length, heads).to(dtype)


def inputs(length=12, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(3, length, 8, dtype=dtype)


def in_loops(inner, outer):
    m, b = inner.shape[0], inner.shape[1]
    matrix = torch.empty(m * b, m * b, dtype=inner.dtype)
    for l in range(m):  # noqa: E741
        for j in range(b):
            for k in range(m):
                for i in range(b):
                    matrix[l * b + j, k * b + i] = outer[j, l, k] * inner[k, j, i]
    return matrix


def relative_error(matrix, **options):
    error = matrix - monarch_matrix(*project_monarch(matrix, **options))
    return (error.norm() / matrix.norm()).item()


@pytest.mark.parametrize(("m", "b"), [(3, 3), (4, 3), (2, 5), (1, 4), (4, 1)])
def test_matrix_of_factors(m, b):
    torch.manual_seed(0)
    inner, outer = torch.randn(m, b, b).double(), torch.randn(b, m, m).double()
    matrix = in_loops(inner, outer)
    assert torch.equal(monarch_matrix(inner, outer), matrix)
    close(monarch_matrix(inner.expand(2, -1, -1, -1), outer), matrix.expand(2, -1, -1))
    # Monarch matrices are what the projection leaves as they are.
    close(monarch_matrix(*project_monarch(matrix, b)), matrix)


@pytest.mark.parametrize("length", [1, 2, 9, 11, 12])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_is_its_matrix(length, dtype, tolerance):
    """A mixer for 12 rows: three blocks of four, of which shorter sequences use a part."""
    module, x = make(dtype=dtype), inputs(length, dtype)
    value = module.value(x).unflatten(2, (2, 4))
    heads = [
        torch.stack([in_loops(inner, outer)[:length, :length] @ v for v in value[:, :, head]])
        for head, (inner, outer) in enumerate(zip(module.inner, module.outer, strict=True))
    ]
    close(module(x), module.output(torch.cat(heads, dim=2)), tolerance)
    close(module.matrix()[1], in_loops(module.inner[1], module.outer[1]), tolerance)


@pytest.mark.parametrize(
    ("length", "block", "blocks"), [(1, 1, 1), (7, 3, 3), (16, 4, 4), (17, 5, 4)]
)
def test_blocks(length, block, blocks):
    """Any length has blocks of about its square root, primes too."""
    module = make(length, heads=4)
    assert module.inner.shape == (4, blocks, block, block)
    assert module.outer.shape == (4, block, blocks, blocks)
    assert module.matrix().shape == (4, length, length)
    assert module(inputs(length)).shape == (3, length, 8)


def test_number_of_parameters():
    module = Monarch(32, 1024)
    assert module.inner.numel() + module.outer.numel() == 2 * 1024 * 32
    assert sum(p.numel() for p in module.parameters()) == 2 * 1024 * 32 + 2 * (32 * 32 + 32)


def test_projection_is_the_closest_matrix():
    torch.manual_seed(0)
    matrix = torch.randn(12, 12, dtype=torch.float64)
    inner, outer = (factor.requires_grad_() for factor in project_monarch(matrix))
    assert (inner.shape, outer.shape) == ((4, 3, 3), (3, 4, 4))
    error = (monarch_matrix(inner, outer) - matrix).square().sum()
    error.backward()  # a minimum has no slope
    close(inner.grad, torch.zeros_like(inner), 1e-10)
    close(outer.grad, torch.zeros_like(outer), 1e-10)
    for _ in range(20):
        other = monarch_matrix(*(f + 0.1 * torch.randn_like(f) for f in (inner, outer)))
        assert (other - matrix).square().sum() > error


def test_projection_of_known_matrices():
    torch.manual_seed(0)
    matrix = torch.randn(256, 256, dtype=torch.float64)
    assert relative_error(matrix) == pytest.approx(0.886, abs=0.005)
    projected = monarch_matrix(*project_monarch(matrix))
    assert relative_error(projected) < 1e-13
    assert relative_error(torch.full((256, 256), 1 / 256, dtype=torch.float64)) < 1e-14
    rows = torch.arange(256, dtype=torch.float64)
    angle = -2 * torch.pi * torch.outer(rows, rows) / 256
    fourier = torch.polar(torch.ones_like(angle), angle)
    # The Fourier matrix is one when its columns stand in the order of a transposed 16 x 16 table.
    columns = torch.arange(256).view(16, 16).T.flatten()
    assert relative_error(fourier[:, columns]) < 1e-12
    assert relative_error(fourier) == pytest.approx(0.97, abs=0.005)


@pytest.mark.parametrize("shape", [(12, 12), (2, 12, 12)])
def test_module_projects(shape):
    module = make()
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    module.project(matrix)
    expected = monarch_matrix(*project_monarch(matrix, module.block))
    close(module.matrix(), expected.expand(2, 12, 12))
    prime = make(11)
    prime.project(torch.full((11, 11), 1 / 11, dtype=torch.float64))
    close(prime.matrix(), torch.full((2, 11, 11), 1 / 11, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Monarch(8, 12, 3),
            "Monarch: heads must divide width (got heads 3 and width 8)",
        ),
        (lambda: Monarch(0, 12), "Monarch: width must be at least 1 (got 0)"),
        (lambda: Monarch(8, 0), "Monarch: length must be at least 1 (got 0)"),
        (
            lambda: make().project(torch.zeros(11, 11)),
            "Monarch: matrix must be [12, 12] or [2, 12, 12] (got shape [11, 11])",
        ),
        (
            lambda: project_monarch(torch.zeros(4, 5)),
            "project_monarch: matrix must be (*, N, N) with N >= 1 (got shape [4, 5])",
        ),
        (
            lambda: project_monarch(torch.zeros(4, 4), 3),
            "project_monarch: block must divide N = 4 (got 3)",
        ),
        (
            lambda: project_monarch(torch.zeros(4, 4), 0),
            "project_monarch: block must be at least 1 (got 0)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
