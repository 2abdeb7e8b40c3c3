"""What the protocols can express: full support, and the mean of all positions."""

import re

import pytest
import torch
from paramixer import links, mix_chain
from paramixer.nn import Paramixer, PSFAttention, average_init, dense_map

LENGTHS = (*range(1, 40), 64, 97, 100, 128, 255)
CUBOIDS = [
    ([[0, 1], [0, 2], [0, 4, 8]], 12),
    ([[0, 1], [0, 2, 4], [0, 6, 12, 18, 24]], 30),
    ([[0, 15], [3, 5, 1], [0, -6, 6, 12, -12]], 30),
    ([[0, 1], [5, 7], [0, 4], [0, 8], [0, 1]], 16),
    ([[0]], 1),
]


def product(weights, offsets, length):
    """The matrix of a chain whose weights are the same in all rows."""
    dense = torch.eye(length, dtype=torch.float64)
    for factor, links_of_factor in zip(weights, offsets, strict=True):
        row = torch.tensor(factor, dtype=torch.float64).expand(length, 1, -1)
        dense = mix_chain(row, dense, [links_of_factor])
    return dense


@pytest.mark.parametrize("protocol", [links.chord, links.cdil, lambda n: links.cdil(n, links=9)])
@pytest.mark.parametrize("length", LENGTHS)
def test_protocols_reach_full_support(protocol, length):
    """Positive weights make every entry positive: every position hears of every other."""
    offsets = protocol(length)
    weights = [[1 / len(factor)] * len(factor) for factor in offsets]
    assert product(weights, offsets, length).min() > 0
    applied = links.reach(offsets, length)
    if applied:
        fewer = product(weights[: applied - 1], offsets[: applied - 1], length)
        assert fewer.min() == 0


@pytest.mark.parametrize("protocol", [links.chord, links.cdil, lambda n: links.cdil(n, links=9)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 12, 16, 48, 64, 96, 256])
def test_protocols_average(protocol, length):
    offsets = protocol(length)
    dense = product(links.average(offsets, length), offsets, length)
    torch.testing.assert_close(dense, torch.full_like(dense, 1 / length), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("offsets", "length"), CUBOIDS)
def test_lists_of_offsets_average(offsets, length):
    dense = product(links.average(offsets, length), offsets, length)
    torch.testing.assert_close(dense, torch.full_like(dense, 1 / length), rtol=0, atol=1e-15)


def test_weights_of_a_power_of_two_are_halves():
    weights = links.average(links.chord(8), 8)
    assert weights == [[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0, 0, 0.5]]


@pytest.mark.parametrize("residual", ["none", "previous"])
@pytest.mark.parametrize("protocol", ["chord", "cdil"])
@pytest.mark.parametrize("length", [16, 24])
def test_module_starts_as_the_mean(residual, protocol, length):
    torch.manual_seed(0)
    module = Paramixer(6, length, protocol=protocol, residual=residual, heads=2).double()
    average_init(module)
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    mean = module.values(x).mean(1, keepdim=True).expand(-1, length, -1)
    torch.testing.assert_close(module(x), mean, rtol=1e-12, atol=1e-12)
    dense = dense_map(module, x)
    torch.testing.assert_close(dense, torch.full_like(dense, 1 / length), rtol=0, atol=1e-14)
    module(x).square().sum().backward()
    assert module.link_output.weight.grad.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: links.average(links.chord(7), 7),
            ValueError,
            "average: offsets must let single factors average digits that make up N = 7 "
            "(got 3 factors that do not)",
        ),
        (lambda: links.average(links.chord(8)[:2], 8), ValueError, "that make up N = 8 (got 2"),
        (
            lambda: links.average([[0, 1], []], 2),
            ValueError,
            "average: offsets must hold at least one a factor (got [[0, 1], []])",
        ),
        (lambda: links.average([[0]], 0), ValueError, "average: length must be at least 1 (got 0)"),
        (
            lambda: average_init(torch.nn.Linear(2, 2)),
            TypeError,
            "average_init: module must be a Paramixer (got Linear)",
        ),
        (
            lambda: average_init(PSFAttention(4, 8)),
            ValueError,
            "average_init: residual of module must be one of ('none', 'previous') (got 'initial')",
        ),
        (
            lambda: average_init(Paramixer(4, 8, bias=False)),
            ValueError,
            "average_init: module must have biases (got bias False)",
        ),
        (
            lambda: average_init(Paramixer(4, 2, protocol=[[1, 3], [0, 1]])),
            ValueError,
            "average_init: module must have a self link in every factor for residual previous "
            "(got offsets [1, 3])",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
