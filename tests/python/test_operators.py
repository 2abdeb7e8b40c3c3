"""Forward and all gradients of every operator against the oracle in float64."""

import paramixer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    DTYPES,
    LAYOUTS,
    OPERATOR_IDS,
    OPERATORS,
    assert_as_exact_as_torch,
    forward_and_gradients,
    relative_error,
)
from torch.utils._python_dispatch import TorchDispatchMode

TILE_SIZES = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129)


def check(operator, operands, offsets, grad_layout=torch.Tensor.contiguous):
    """Compares result and gradients with the oracle in the operands' dtype and in float64."""
    exact_operands = [operand.double() for operand in operands]
    grad = grad_layout(torch.randn_like(operator.oracle(*exact_operands, offsets)).to(operands[0]))
    actual = forward_and_gradients(operator.function, operands, offsets, grad)
    torchs = forward_and_gradients(operator.torchs, operands, offsets, grad)
    exact = forward_and_gradients(operator.oracle, exact_operands, offsets, grad.double())
    magnitudes = forward_and_gradients(
        operator.oracle, [operand.abs() for operand in exact_operands], offsets, grad.double().abs()
    )
    names = ("result", "d first", "d second")[: len(actual)]
    for what, *results, magnitude in zip(names, actual, torchs, exact, magnitudes, strict=True):
        assert_as_exact_as_torch(*results, what, operator.products, magnitude)
    return actual, exact


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", TILE_SIZES)
def test_channels(operator, dtype, channels, device):
    operands = operator.operands((2,), 37, channels, 5, dtype=dtype, device=device)
    check(operator, operands, [0, 1, -3, 11, 40])


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 13, 64, 127, 1999])
def test_lengths_and_chord_links(operator, dtype, length, device):
    offsets = paramixer.links.chord(length)[0]
    operands = operator.operands((3,), length, 20, len(offsets), dtype=dtype, device=device)
    check(operator, operands, offsets)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("length", [2000, 4097, 16385])
def test_long_rings(operator, length, device):
    for offsets in (paramixer.links.cdil(length)[-1], paramixer.links.cdil(length, links=9)[5]):
        operands = operator.operands((1,), length, 33, len(offsets), device=device)
        actual, exact = check(operator, operands, offsets)
        assert all(relative_error(a, e) <= 2e-6 for a, e in zip(actual, exact, strict=True))


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("links", [1, 2, 3, 4, 5, 9, 12, 63, 64])
def test_links(operator, links, device):
    offsets = torch.randint(-50, 50, (links,)).tolist()
    check(operator, operator.operands((2,), 19, 24, links, device=device), offsets)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize(
    "offsets",
    [[0, 0, 0], [3, -7, 13], [10, 0, -10], [2**40, -(2**62), 2**62 + 1], [5, 5, 15], [-1, 9, 19]],
)
def test_any_offsets(operator, offsets, device):
    check(operator, operator.operands((2,), 10, 6, 3, dtype=torch.float64, device=device), offsets)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 6, 40])
def test_layouts(operator, dtype, layout, channels, device):
    arrange = LAYOUTS[layout]
    batch = (2, 3)
    operands = operator.operands(batch, 21, channels, 4, dtype=dtype, device=device)
    for index, operand in enumerate(operands):
        arranged = [*operands[:index], arrange(operand), *operands[index + 1 :]]
        check(operator, arranged, [0, 1, -2, 8])
    check(operator, operands, [0, 1, -2, 8], grad_layout=arrange)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize(
    "batches",
    [
        ((), ()),
        ((), (3,)),
        ((3,), ()),
        ((1, 4), (3, 1)),
        ((2, 1, 3), (5, 3)),
        ((2, 1, 2, 1, 2, 1, 2), (1, 3, 1, 3, 1, 3, 1)),  # more than a kernel keeps apart
    ],
)
def test_batches_broadcast(operator, batches, device):
    operands = operator.operands(batches, 9, 5, 3, device=device)
    check(operator, operands, [0, 2, -1])


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize(
    ("batch", "length", "channels"), [((0,), 4, 3), ((2,), 0, 3), ((2,), 4, 0), ((0, 2), 0, 0)]
)
def test_empty(operator, batch, length, channels, device):
    operands = operator.operands(batch, length, channels, 2, device=device)
    actual, _ = check(operator, operands, [0, 1])
    if operator.name == "link_dot" and channels == 0:
        assert torch.equal(actual[0], torch.zeros_like(actual[0]))


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_layout_is_empty_like_of_the_last_operand(operator, layout, device):
    if operator.name == "link_dot":
        return  # always contiguous
    *others, value = operator.operands((2, 3), 7, 4, 2, device=device)
    value = LAYOUTS[layout](value)
    for some_device in (device, "meta"):
        operands = [operand.to(some_device) for operand in (*others, value)]
        result = operator.function(*operands, [0, 1])
        assert result.stride() == torch.empty_like(operands[-1]).stride()
    for other in others:
        more = other.expand(5, *other.shape)
        assert operator.function(more, value, [0, 1]).is_contiguous()


def test_heads_as_strided_views(device):
    """Heads in the channel dimension, seen as a batch dimension, without a copy and in place."""
    value = torch.randn(2, 11, 3 * 4, device=device)
    weight = torch.randn(2, 11, 3, 5, device=device)
    heads = value.view(2, 11, 3, 4).transpose(1, 2)
    result = paramixer.mix(weight.transpose(1, 2), heads, [0, 1, 2, 4, 8])
    assert result.stride() == heads.stride()
    for head in range(3):
        alone = paramixer.mix(
            weight[:, :, head], value[..., 4 * head : 4 * head + 4], [0, 1, 2, 4, 8]
        )
        torch.testing.assert_close(result[:, head], alone, rtol=0, atol=0)


class CountOperators(TorchDispatchMode):
    """Names of the operators of this library that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "paramixer":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("wanted", "operators"),
    [
        ((True, False), ["link_dot"]),
        ((False, True), ["mix_transpose"]),
        ((True, True), ["mix_backward"]),
    ],
)
def test_only_wanted_gradients_are_computed(wanted, operators, device):
    operands = OPERATORS[0].operands((2,), 9, 4, 3, device=device)
    for operand, needs in zip(operands, wanted, strict=True):
        operand.requires_grad_(needs)
    result = paramixer.mix(*operands, [0, 1, 2])
    with CountOperators() as counted:
        result.sum().backward()
    assert counted.names == operators
    assert tuple(operand.grad is not None for operand in operands) == wanted


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
def test_only_needed_operands_are_saved(operator, device):
    """What a function is linear in may change in between: its gradient does not need it."""
    for needs in operator.linear_in:
        operands = operator.operands((2,), 9, 4, 3, device=device)
        operands[needs].requires_grad_()
        exact = torch.autograd.grad(operator.function(*operands, [0, 1, 2]).sum(), operands[needs])
        result = operator.function(*operands, [0, 1, 2])
        with torch.no_grad():
            operands[needs].zero_()
        torch.testing.assert_close(torch.autograd.grad(result.sum(), operands[needs]), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_beyond_the_caches(dtype, device):
    """Large ones take another way to memory, on any number of threads."""
    weight, value = OPERATORS[0].operands((2,), 9000, 128, 3, dtype=dtype, device=device)
    check(OPERATORS[0], (weight, value), [0, 700, -700])
    expected = paramixer.mix(weight, value, [0, 700, -700])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(paramixer.mix(weight, value, [0, 700, -700]), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_spread_as_ieee_says(operator, dtype, device):
    operands = operator.operands((1,), 12, 21, 3, dtype=dtype, device=device)
    operands[-1][0, 4, 19] = float("nan")
    operands[-1][0, 7, 2] = float("inf")
    result = operator.function(*operands, [0, 1, -2])
    expected = operator.oracle(*operands, [0, 1, -2])
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result[expected.isinf()], expected[expected.isinf()])
    finite = expected.isfinite()
    assert relative_error(result[finite], expected[finite]) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_results_are_rounded_once(dtype, device):
    """The float32 sum of products, rounded: bit for bit what PyTorch's own conversion gives."""
    weight = torch.randn(1, 50, 1, dtype=dtype, device=device)
    scales = torch.logspace(-9, 4, 37, device=device)  # into the subnormal numbers of float16
    value = (torch.randn(1, 50, 37, device=device) * scales).to(dtype)
    expected = (weight.float() * value.float().roll(-3, 1)).to(dtype)
    assert torch.equal(paramixer.mix(weight, value, [3]), expected)


def test_float16_overflow_is_infinity(device):
    weight = torch.full((1, 4, 1), 300.0, dtype=torch.float16, device=device)
    value = torch.full((1, 4, 20), 300.0, dtype=torch.float16, device=device)
    assert paramixer.mix(weight, value, [0]).isinf().all()


@settings(max_examples=150, deadline=None)
@given(
    operator=st.sampled_from(OPERATORS),
    batch=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    length=st.integers(0, 40),
    channels=st.integers(0, 70),
    offsets=st.lists(st.integers(-100, 100), min_size=1, max_size=12),
    layouts=st.tuples(st.sampled_from(sorted(LAYOUTS)), st.sampled_from(sorted(LAYOUTS))),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_anything(operator, batch, length, channels, offsets, layouts, dtype, seed):
    torch.manual_seed(seed)
    operands = operator.operands(batch, length, channels, len(offsets), dtype=dtype)
    arranged = [LAYOUTS[name](tensor) for name, tensor in zip(layouts, operands, strict=False)]
    check(operator, arranged, offsets)


def test_transpose_is_the_adjoint(device):
    """<mix(W, V), U> = <V, mix_transpose(W, U)>."""
    weight, value = OPERATORS[0].operands((2,), 50, 9, 4, dtype=torch.float64, device=device)
    other = torch.randn_like(value)
    offsets = [0, 3, -5, 60]
    left = (paramixer.mix(weight, value, offsets) * other).sum()
    right = (value * paramixer.mix_transpose(weight, other, offsets)).sum()
    torch.testing.assert_close(left, right)
