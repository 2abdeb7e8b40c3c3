"""What every mixer promises: `mixer(x, mask=None)` as the table below makes it.

A new mixer is one line of the table. What is true of one mixer alone, its formula first, is tested
in a file of its own.
"""

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from paramixer.nn import (
    BidirectionalGRU,
    ChordMixer,
    LinearAttention,
    Monarch,
    Paramixer,
    PSFAttention,
    SimpleTron,
    opponents,
)
from support import close, padding_mask, peak_bytes, relative_error
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, LENGTH = 8, 12


@dataclass(frozen=True)
class Mixer:
    """How to make one for sequences up to `length`, and what sets it apart from the others."""

    make: Callable[[int], nn.Module]
    ring: bool = False  # padding takes up places: only what it holds has no effect
    causal: bool = False
    quadratic: bool = False  # in memory
    least: int = 0  # rows that an exported program takes
    packed: bool = False  # PyTorch neither compiles nor exports packed sequences


def linear(feature_map, causal=False):
    return Mixer(
        lambda length: LinearAttention(WIDTH, 2, feature_map=feature_map, causal=causal),
        causal=causal,
    )


MIXERS = {
    "paramixer": Mixer(lambda length: Paramixer(WIDTH, length, heads=2, hidden=5), ring=True),
    "paramixer-cdil": Mixer(
        lambda length: Paramixer(WIDTH, length, protocol="cdil", residual="none"), ring=True
    ),
    "psf": Mixer(lambda length: PSFAttention(WIDTH, length), ring=True),
    "linear-elu": linear("elu"),
    "linear-relu": linear("relu"),
    "linear-favor": linear("favor"),
    "linear-low-rank": linear("low_rank"),
    "linear-causal": linear("gated", causal=True),
    "monarch": Mixer(lambda length: Monarch(WIDTH, length, heads=2)),
    "simpletron": Mixer(lambda length: SimpleTron(WIDTH, heads=2)),
    "chord-mixer": Mixer(lambda length: ChordMixer(WIDTH, length, tracks=4)),
    "gru": Mixer(lambda length: BidirectionalGRU(WIDTH), packed=True),
    "softmax": Mixer(lambda length: opponents.SoftmaxAttention(WIDTH, length, heads=2)),
    "transformer": Mixer(lambda length: opponents.TransformerBlock(WIDTH, length, heads=2)),
    "linformer": Mixer(lambda length: opponents.Linformer(WIDTH, length, heads=2, rank=5)),
    "nystromformer": Mixer(
        lambda length: opponents.Nystromformer(
            WIDTH, length, heads=2, landmarks=5, iterations=3, kernel=3
        )
    ),
    "local": Mixer(
        lambda length: opponents.LocalAttention(WIDTH, length, heads=2, window=6), least=6
    ),
    "s4d": Mixer(lambda length: opponents.S4D(WIDTH, length, states=4)),
}
every_mixer = pytest.mark.parametrize("name", MIXERS)
every_mixer_but_rings = pytest.mark.parametrize("name", [n for n in MIXERS if not MIXERS[n].ring])
every_mixer_in_a_graph = pytest.mark.parametrize(
    "name", [n for n in MIXERS if not MIXERS[n].packed]
)
every_linear_mixer = pytest.mark.parametrize("name", [n for n in MIXERS if not MIXERS[n].quadratic])
both_16_bit_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def make(name, length=LENGTH, dtype=torch.float64):
    """In evaluation mode: every call is the same function."""
    torch.manual_seed(0)
    return MIXERS[name].make(length).to(dtype).eval()


def inputs(length=LENGTH, batch=3, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, length, WIDTH, dtype=dtype)


@every_mixer
def test_any_length_up_to_its_own(name):
    mixer = make(name)
    width = getattr(mixer, "value_width", WIDTH)
    for length in (1, 2, 7, LENGTH):
        result = mixer(inputs(length))
        assert result.shape == (3, length, width)
        assert result.isfinite().all()


@every_mixer
def test_sequences_of_a_batch_are_apart(name):
    """Attention over the batch instead of the sequence would mix them."""
    mixer, x, mask = make(name), inputs(), padding_mask([12, 7, 3])
    order = torch.tensor([2, 0, 1])
    close(mixer(x[order], mask[order]), mixer(x, mask)[order])
    for b in range(3):
        close(mixer(x[b : b + 1], mask[b : b + 1]), mixer(x, mask)[b : b + 1])


@every_mixer
def test_what_a_row_sees(name):
    """All rows; in causal mixers those up to itself, and no trace of later ones."""
    mixer, x = make(name), inputs(batch=16).requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(x)[:, 5].square().sum(), x)
    seen = gradient.any(2).any(0)
    assert torch.equal(seen, torch.arange(LENGTH) < (6 if MIXERS[name].causal else LENGTH))


@every_mixer
@pytest.mark.parametrize("junk", [1e6, float("inf"), float("nan")])
def test_padding_has_no_effect_and_no_gradient(name, junk):
    mixer, x, mask = make(name), inputs(), padding_mask([12, 7, 0])
    mask[0, 4] = False
    result = mixer(x, mask)
    assert (result[~mask] == 0).all()
    assert result[mask].any(1).all()
    other = x.masked_fill(~mask.unsqueeze(2), junk).requires_grad_()
    close(mixer(other, mask), result)
    mixer(other, mask).square().sum().backward()
    assert (other.grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


@every_mixer_but_rings
def test_padding_takes_no_place(name):
    mixer, x = make(name), inputs()
    result = mixer(x, padding_mask([12, 7, 3]))
    for b, length in enumerate((12, 7, 3)):
        close(result[b, :length], mixer(x[b : b + 1, :length])[0])


@every_mixer
def test_mask_of_valid_rows_alone(name):
    mixer = make(name)
    close(mixer(inputs(), torch.ones(3, LENGTH, dtype=torch.bool)), mixer(inputs()))


@every_mixer
@pytest.mark.parametrize("shape", [(0, LENGTH), (2, 0), (0, 0)])
def test_empty(name, shape):
    mixer = make(name)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    result = mixer(x, torch.ones(shape, dtype=torch.bool))
    assert result.shape[:2] == shape
    result.sum().backward()
    assert x.grad.shape == x.shape


@every_mixer
def test_gradients(name):
    mixer, x = make(name), inputs(5, batch=1).requires_grad_()
    mask = padding_mask([4], 5)
    leaves = [x, *mixer.parameters()]

    def loss(x, *parameters):
        named = dict(zip(dict(mixer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(mixer, named, (x, mask)).square().sum()

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have first derivatives only
        assert torch.autograd.gradgradcheck(lambda x: loss(x, *leaves[1:]), x, fast_mode=True)
    # Every parameter takes part, but for those that a mask or a softmax makes indifferent.
    gradients = torch.autograd.grad(mixer(x).square().sum(), leaves, allow_unused=True)
    assert sum(g is not None and bool(g.any()) for g in gradients) >= len(leaves) - 1


@every_mixer
def test_strides(name):
    mixer, x = make(name), inputs()
    close(mixer(x.mT.contiguous().mT), mixer(x))
    close(mixer(x.transpose(0, 1).contiguous().transpose(0, 1)), mixer(x))
    close(mixer(x[:1].expand(3, -1, -1)), mixer(x[:1]).expand(3, -1, -1))


@every_mixer
def test_copies(name):
    mixer, x, mask = make(name), inputs(), padding_mask([12, 7, 3])
    expected = mixer(x, mask)
    torch.manual_seed(7)
    loaded = MIXERS[name].make(LENGTH).double().eval()
    loaded.load_state_dict(mixer.state_dict())
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), loaded):
        assert torch.equal(other(x, mask), expected)


@every_mixer_in_a_graph
def test_compile(name):
    torch._dynamo.reset()
    mixer, x, mask = make(name), inputs().requires_grad_(), padding_mask([12, 7, 3])
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager", dynamic=False)
    result, expected = compiled(x, mask), mixer(x, mask)
    close(result, expected)
    (gradient,) = torch.autograd.grad(result.square().sum(), x)
    close(gradient, torch.autograd.grad(expected.square().sum(), x)[0])


@every_mixer_in_a_graph
def test_export_with_dynamic_batch_and_length(name):
    mixer = make(name)
    dims = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", min=MIXERS[name].least, max=LENGTH),
    }
    program = torch.export.export(
        mixer, (inputs(), padding_mask([12, 7, 3])), dynamic_shapes={"x": dims, "mask": dims}
    )
    x, mask = inputs(7, batch=2), padding_mask([7, 4], 7)
    close(program.module()(x, mask), mixer(x, mask))


@every_mixer
@both_16_bit_types
def test_autocast(name, dtype):
    mixer = make(name, dtype=torch.float32)
    x, mask = inputs(dtype=torch.float32), padding_mask([12, 7, 3])
    with torch.autocast("cpu", dtype):
        result = mixer(x, mask)
        result.float().square().sum().backward()
    assert relative_error(result, mixer(x, mask)) < 0.05
    assert all(p.grad.dtype == torch.float32 for p in mixer.parameters() if p.grad is not None)
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


@every_mixer
@both_16_bit_types
def test_16_bit_module(name, dtype):
    mixer = make(name, dtype=dtype)
    x = inputs(dtype=dtype)
    result = mixer(x)
    assert result.dtype == dtype
    assert relative_error(result, copy.deepcopy(mixer).double()(x.double())) < 0.05


@every_mixer
@both_16_bit_types
def test_4000_rows_are_finite_in_16_bits(name, dtype):
    length = 4000
    x = inputs(length, batch=1, dtype=torch.float32)
    mask = padding_mask([length - 100], length)
    mixer = make(name, length, torch.float32)
    with torch.no_grad():
        expected = mixer(x, mask)
        with torch.autocast("cpu", dtype):
            assert relative_error(mixer(x, mask), expected) < 0.02
        assert mixer.to(dtype)(x.to(dtype), mask).isfinite().all()


@every_linear_mixer
def test_memory_grows_linearly(name):
    """Peak of a training step: nothing of N x N, which would take four times as much."""
    mixer = make(name, 4096, torch.float32)
    peaks = []
    for length in (2048, 4096):
        x = inputs(length, batch=1, dtype=torch.float32)
        peaks.append(peak_bytes(lambda x=x: mixer(x).square().sum().backward()))
    assert peaks[1] < 2.1 * peaks[0]


X, MASK = torch.zeros(3, LENGTH, WIDTH), torch.ones(3, LENGTH, dtype=torch.bool)


@every_mixer
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[..., :7],), ValueError, "x must be (B, N, 8) (got shape [3, 12, 7])"),
        ((X[0],), ValueError, "x must be (B, N, 8) (got shape [12, 8])"),
        ((X.long(),), TypeError, "x must be floating (got torch.int64)"),
        ((X, MASK[:, 1:]), ValueError, "mask must be (B, N) = [3, 12] (got shape [3, 11])"),
        ((X, MASK[0]), ValueError, "mask must be (B, N) = [3, 12] (got shape [12])"),
        ((X, MASK.float()), TypeError, "mask must be bool (got torch.float32)"),
    ],
)
def test_call_errors(name, arguments, error, message):
    with pytest.raises(error, match=rf"^\w+: {re.escape(message)}"):
        make(name, dtype=torch.float32)(*arguments)


@every_mixer
def test_longer_than_its_length(name):
    mixer = make(name)
    if not hasattr(mixer, "length"):
        assert mixer(inputs(50)).shape[:2] == (3, 50)
        return
    with pytest.raises(ValueError, match=r"^\w+: x must not be longer than length 12 \(got N = 13"):
        mixer(inputs(13))
