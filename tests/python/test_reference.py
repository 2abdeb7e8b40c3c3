"""The oracle against dense matrices, written entry by entry."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paramixer import reference
from support import close

OFFSETS = [0, 3, -1, 3, 1000, -77]


def dense_factor(weight, offsets):
    """S with S[i, (i + o_k) mod N] summing the weights W[i, k], (*, N, N)."""
    length = weight.shape[-2]
    dense = weight.new_zeros(*weight.shape[:-1], length)
    for i in range(length):
        for k, offset in enumerate(offsets):
            dense[..., i, (i + offset) % length] += weight[..., i, k]
    return dense


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(0, 4),
    st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=5),
    st.sampled_from([((), ()), ((2,), (2,)), ((), (3,)), ((3, 1), (2,)), ((0,), (1,))]),
    st.integers(0, 2**31),
)
def test_against_dense(length, channels, offsets, batches, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*batches[0], length, len(offsets), generator=generator).double()
    value = torch.randn(*batches[1], length, channels, generator=generator).double()
    dense = dense_factor(weight, offsets)
    close(reference.mix(weight, value, offsets), dense @ value)
    close(reference.mix_transpose(weight, value, offsets), dense.mT @ value)
    grad = torch.randn(*batches[0], length, channels, generator=generator).double()
    outer = grad @ value.mT
    picked = [[outer[..., i, (i + offset) % length] for offset in offsets] for i in range(length)]
    expected = outer.new_zeros(*outer.shape[:-2], length, len(offsets))
    for i, row in enumerate(picked):
        expected[..., i, :] = torch.stack(row, dim=-1)
    close(reference.link_dot(grad, value, offsets), expected)


@pytest.mark.parametrize("residual", reference.RESIDUALS)
def test_chain_against_dense(residual):
    offsets = [[0, 1, 2], [0, 4, -3], [5, 5, 9]]
    weight = torch.randn(2, 7, 3, 3, dtype=torch.float64)
    value = torch.randn(2, 7, 4, dtype=torch.float64)
    expected = value
    for m, factor in enumerate(offsets):
        added = {"none": 0, "previous": expected, "initial": value}[residual]
        expected = dense_factor(weight[..., m, :], factor) @ expected + added
    close(reference.mix_chain(weight, value, offsets, residual), expected)


def test_derivatives():
    weight = torch.randn(2, 5, len(OFFSETS), dtype=torch.float64, requires_grad=True)
    value = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    for function, first in (
        (reference.mix, weight),
        (reference.mix_transpose, weight),
        (reference.link_dot, grad),
    ):
        torch.autograd.gradcheck(lambda a, b, f=function: f(a, b, OFFSETS), (first, value))
        torch.autograd.gradgradcheck(lambda a, b, f=function: f(a, b, OFFSETS), (first, value))


def test_any_strides():
    weight = torch.randn(len(OFFSETS), 6, 2, dtype=torch.float64).permute(2, 1, 0)
    value = torch.randn(2, 4, 12, dtype=torch.float64)[..., ::2].mT
    for function in (reference.mix, reference.mix_transpose):
        expected = function(weight.contiguous(), value.contiguous(), OFFSETS)
        close(function(weight, value, OFFSETS), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_is_rounded_once(dtype):
    weight, value = torch.randn(8, 6).to(dtype), torch.randn(8, 3).to(dtype)
    for function, first in (
        (reference.mix, weight),
        (reference.mix_transpose, weight),
        (reference.link_dot, value),
    ):
        exact = function(first.float(), value.float(), OFFSETS)
        assert torch.equal(function(first, value, OFFSETS), exact.to(dtype))
    chained = reference.mix_chain(weight.unsqueeze(1), value, [OFFSETS], "previous")
    exact = reference.mix_chain(weight.float().unsqueeze(1), value.float(), [OFFSETS], "previous")
    assert torch.equal(chained, exact.to(dtype))


def test_meta_device():
    weight, value = torch.empty(2, 5, 6, device="meta"), torch.empty(5, 3, device="meta")
    assert reference.mix(weight, value, OFFSETS).shape == (2, 5, 3)


WEIGHT, VALUE = torch.zeros(5, 2), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reference.mix(torch.zeros(5, 0), VALUE, []),
            "mix: offsets must hold at least one link (got 0)",
        ),
        (
            lambda: reference.mix(WEIGHT, VALUE, [0]),
            "mix: weight must have one column per offset (got shape [5, 2] and 1 offsets)",
        ),
        (
            lambda: reference.mix(WEIGHT, VALUE[0], [0, 1]),
            "mix: value must have at least two dimensions (got shape [3])",
        ),
        (
            lambda: reference.mix_transpose(WEIGHT, VALUE[1:], [0, 1]),
            "mix_transpose: weight and value must have the same length N in dimension -2 "
            "(got shapes [5, 2] and [4, 3])",
        ),
        (
            lambda: reference.mix(WEIGHT.expand(4, 2, 5, 2), VALUE.expand(3, 5, 3), [0, 1]),
            "mix: batch dimensions of weight and value must broadcast "
            "(got shapes [4, 2, 5, 2] and [3, 5, 3])",
        ),
        (
            lambda: reference.link_dot(VALUE.expand(0, 5, 3), VALUE.expand(2, 5, 3), [0]),
            "link_dot: batch dimensions of grad and value must broadcast "
            "(got shapes [0, 5, 3] and [2, 5, 3])",
        ),
        (
            lambda: reference.link_dot(WEIGHT, VALUE, [0]),
            "link_dot: grad and value must have the same number of channels D in dimension -1 "
            "(got shapes [5, 2] and [5, 3])",
        ),
        (
            lambda: reference.mix_chain(WEIGHT.unsqueeze(1), VALUE, [[0, 1]], "all"),
            "mix_chain: residual must be one of ('none', 'previous', 'initial') (got 'all')",
        ),
        (
            lambda: reference.mix_chain(WEIGHT.unsqueeze(1), VALUE, [[0, 1], [0, 1]]),
            "mix_chain: weight must be (*, N, M, K) with M = 2 factors (got shape [5, 1, 2])",
        ),
        (
            lambda: reference.mix_chain(
                WEIGHT.expand(2, 5, 2).unsqueeze(2), VALUE.expand(3, 5, 3), [[0, 1]]
            ),
            "mix_chain: batch dimensions of weight and value must broadcast "
            "(got shapes [2, 5, 2] and [3, 5, 3])",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_mixed_dtypes():
    message = r"mix: weight and value must have one dtype \(got torch.float32 and torch.float64\)"
    with pytest.raises(TypeError, match=message):
        reference.mix(WEIGHT, VALUE.double(), [0, 1])
