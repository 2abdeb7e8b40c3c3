"""What rotate_tracks has beyond the other operators: tracks, and rings of their own length."""

import re

import paramixer
import pytest
import torch
from paramixer import reference
from support import DTYPES
from torch.func import vmap

SHIFTS = [0, 1, -4]
LENGTHS = [9, 0, 4, 1]


def operands(dtype=torch.float64, track=2, device="cpu"):
    value = torch.randn(4, 9, 3 * track, dtype=dtype, device=device)
    return value, torch.tensor(LENGTHS, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("track", [1, 2, 3, 5, 8, 16, 33])
def test_tracks_are_rolled(dtype, track, device):
    value, _ = operands(dtype, track, device)
    tracks = zip(value.chunk(3, -1), SHIFTS, strict=True)
    expected = torch.cat([torch.roll(x, -shift, 1) for x, shift in tracks], -1)
    assert torch.equal(paramixer.rotate_tracks(value, SHIFTS), expected)
    assert torch.equal(reference.rotate_tracks(value, SHIFTS), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shifts", [SHIFTS, [-1, 100, 2**62], [1 - 2**63, 2**63 - 1, 5]])
def test_padded_sequences_rotate_in_their_own_rings(dtype, shifts, device):
    value, lengths = operands(dtype, device=device)
    for row, length in enumerate(LENGTHS):
        value[row, length:] = float("nan")  # is neither read
    value.requires_grad_()
    result = paramixer.rotate_tracks(value, shifts, lengths)
    (gradient,) = torch.autograd.grad(result, value, torch.full_like(result, 2))
    for row, length in enumerate(LENGTHS):
        alone = paramixer.rotate_tracks(value[row, :length], shifts)
        assert torch.equal(result[row, :length], alone)
        assert not result[row, length:].any()
        assert (gradient[row, :length] == 2).all()
        assert not gradient[row, length:].any()  # nor has a gradient


def test_back_and_forth(device):
    value, lengths = operands(device=device)
    back = [-shift for shift in SHIFTS]
    there = paramixer.rotate_tracks(value, SHIFTS, lengths)
    again = paramixer.rotate_tracks(there, back, lengths)
    valid = torch.arange(9, device=device) < lengths.unsqueeze(1)
    assert torch.equal(again, value.masked_fill(~valid.unsqueeze(2), 0))


def test_lengths_of_any_strides(device):
    value, lengths = operands(device=device)
    strided = torch.stack([lengths, lengths + 1], 1)[:, 0]
    expected = paramixer.rotate_tracks(value, SHIFTS, lengths)
    assert torch.equal(paramixer.rotate_tracks(value, SHIFTS, strided), expected)
    batch = value.view(2, 2, 9, 6), lengths.view(2, 2)
    result = paramixer.rotate_tracks(
        batch[0].mT.contiguous().mT, SHIFTS, batch[1].mT.contiguous().mT
    )
    assert torch.equal(result.flatten(0, 1), expected)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None), (1, 0)])
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap_of_lengths(in_dims):
    values, lengths = torch.randn(2, 4, 9, 6), torch.tensor([LENGTHS, LENGTHS[::-1]])
    run = lambda value, rings: paramixer.rotate_tracks(value, SHIFTS, rings)
    pick = lambda tensor, dim, i: tensor[i] if dim is not None else tensor[0]
    expected = [
        run(*(pick(t, d, i) for t, d in zip((values, lengths), in_dims, strict=True)))
        for i in range(2)
    ]
    arguments = [
        t[0] if d is None else t.movedim(0, d)
        for t, d in zip((values, lengths), in_dims, strict=True)
    ]
    assert torch.equal(vmap(run, in_dims)(*arguments), torch.stack(expected))


def test_changed_lengths_are_noticed():
    value, lengths = operands()
    result = paramixer.rotate_tracks(value.requires_grad_(), SHIFTS, lengths)
    lengths.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


VALUE = torch.zeros(2, 5, 6)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.ones(2), TypeError, "lengths must be int64 (got Float)"),
        (torch.ones(2, dtype=torch.int32), TypeError, "lengths must be int64 (got Int)"),
        (torch.ones(3).long(), ValueError, "lengths must have the batch dimensions of value, [2]"),
        (torch.ones(2, 1).long(), ValueError, "of value, [2] (got shape [2, 1])"),
    ],
)
def test_wrong_lengths(device, lengths, error, message):
    for value in (VALUE.to(device), VALUE.to(device).requires_grad_()):
        with pytest.raises(error, match=re.escape(message)) as caught:
            paramixer.rotate_tracks(value, SHIFTS, lengths.to(device))
        assert str(caught.value).startswith("rotate_tracks: ")


@pytest.mark.parametrize("function", [paramixer.rotate_tracks, reference.rotate_tracks])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_lengths_out_of_range(function, wrong):
    message = rf"rotate_tracks: lengths must be at least 0 and at most N = 5 \(got {wrong}\)"
    with pytest.raises(ValueError, match=message):
        function(VALUE, SHIFTS, torch.tensor([5, wrong]))


def test_lengths_on_another_device():
    with pytest.raises(ValueError, match="rotate_tracks: value and lengths must be on one device"):
        paramixer.rotate_tracks(VALUE, SHIFTS, torch.ones(2, dtype=torch.int64, device="meta"))


def test_lengths_on_cuda_are_clamped():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    value, _ = operands(device="cuda")
    wrong, right = (torch.tensor(x, device="cuda") for x in ([9, -3, 40, 1], [9, 0, 9, 1]))
    expected = paramixer.rotate_tracks(value, SHIFTS, right)
    assert torch.equal(paramixer.rotate_tracks(value, SHIFTS, wrong), expected)


@pytest.mark.parametrize(
    ("value", "shifts", "message"),
    [
        (VALUE, [], "shifts must hold at least one track (got 0)"),
        (VALUE[0, 0], [0], "value must have at least two dimensions (got shape [6])"),
        (VALUE, [0] * 4, "one track per shift (got shape [2, 5, 6] and 4 shifts)"),
    ],
)
def test_errors_of_the_reference(value, shifts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.rotate_tracks(value, shifts)
