"""Each opponent beside its formula with explicit N x N matrices, and beside the usual library."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from paramixer.nn import Paramixer, SequenceClassifier
from paramixer.nn.opponents import (
    S4D,
    EncoderBlock,
    Linformer,
    LocalAttention,
    Nystromformer,
    SoftmaxAttention,
    TransformerBlock,
)
from support import close, padding_mask
from torch import nn

WIDTH, LENGTH, HEADS = 6, 13, 2


def inputs(length=LENGTH, batch=2, width=WIDTH, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, length, width, dtype=dtype)


def softmax_scores(query, key):
    return (query @ key.T / math.sqrt(query.shape[1])).softmax(1)


def softmax_matrix(module, query, key, head):
    return softmax_scores(query, key)


def linformer_matrix(module, query, key, head):
    e, f = module.key_rows[: len(key)].T, module.value_rows[: len(key)].T
    return softmax_scores(query, e @ key) @ f


def nystrom_matrix(module, query, key, head):
    rows = len(query)
    marks = range(module.landmarks)
    segments = [[j for j in range(rows) if j * module.landmarks // rows == s] for s in marks]
    means = lambda x: torch.stack([x[s].mean(0) for s in segments if s])
    a = softmax_scores(means(query), means(key))
    eye = torch.eye(len(a), dtype=a.dtype)
    z = a.T / (a.sum(0).max() * a.sum(1).max())
    for _ in range(module.iterations):
        z = 0.25 * z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z)))
    attention = softmax_scores(query, means(key)) @ z @ softmax_scores(means(query), key)
    taps = module.taps[head]
    distance = torch.arange(rows) - torch.arange(rows).unsqueeze(1) + len(taps) // 2
    inside = (distance >= 0) & (distance < len(taps))
    return attention + taps[distance.clamp(0, len(taps) - 1)] * inside


def local_matrix(module, query, key, head):
    scores = query @ key.T / math.sqrt(query.shape[1])
    i = torch.arange(len(query))
    far = (i - i.unsqueeze(1)).abs() > module.window
    return scores.masked_fill(far, -torch.inf).softmax(1)


@dataclass(frozen=True)
class Attention:
    make: Callable[..., nn.Module]  # with options
    matrix: Callable  # (N, N) of module, query (N, d), key (N, d) and head
    variants: tuple[dict, ...] = ({},)
    anywhere: bool = False  # padding may lie between valid rows, too


ATTENTIONS = {
    "softmax": Attention(SoftmaxAttention, softmax_matrix, anywhere=True),
    "linformer": Attention(Linformer, linformer_matrix, ({"rank": 5}, {"rank": 20})),
    "nystromformer": Attention(
        Nystromformer,
        nystrom_matrix,
        ({"landmarks": 5}, {"landmarks": 4, "kernel": 1}, {"landmarks": 30, "kernel": 3}),
    ),
    "local": Attention(
        LocalAttention, local_matrix, tuple({"window": w} for w in (1, 3, 6, 12, 13, 14, 40))
    ),
}
VARIANTS = [(n, options) for n, attention in ATTENTIONS.items() for options in attention.variants]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


def make(name, dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"heads": HEADS} | options
    return ATTENTIONS[name].make(WIDTH, LENGTH, **options).to(dtype)


def explicit(name, module, x):
    """The result for one sequence x (N, E), head by head, with N x N matrices."""
    query, key, value = (
        part.chunk(module.heads, dim=1) for part in module.projection(x).chunk(3, dim=1)
    )
    heads = [
        ATTENTIONS[name].matrix(module, query[h], key[h], h) @ value[h] for h in range(module.heads)
    ]
    return module.output(torch.cat(heads, dim=1))


@every_variant
@pytest.mark.parametrize("length", [LENGTH, 12, 7, 2, 1])
def test_formula_and_gradients(name, options, length):
    module = make(name, **options)
    x = inputs(length).requires_grad_()
    leaves = [x, *module.parameters()]
    result = module(x)
    expected = torch.stack([explicit(name, module, item) for item in x])
    close(result, expected)
    upstream = torch.randn_like(result)
    actual = torch.autograd.grad(result, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for ours, theirs in zip(actual, wanted, strict=True):
        close(ours, theirs, 1e-11)


@every_variant
def test_formula_in_float32(name, options):
    module, x = make(name, **options, bias=False), inputs()
    expected = torch.stack([explicit(name, module, item) for item in x])
    close(module.float()(x.float()).double(), expected, 1e-5)


@every_variant
def test_formula_of_valid_rows(name, options):
    """Those of a sequence without its padding, wherever the padding may lie."""
    module, x, mask = make(name, **options), inputs(), padding_mask([13, 8])
    if ATTENTIONS[name].anywhere:
        mask[0, 4:7] = mask[1, 0] = False
    result = module(x, mask)
    for b in range(2):
        close(result[b, mask[b]], explicit(name, module, x[b, mask[b]]))


def test_landmarks_are_means_of_valid_rows_wherever_they_lie():
    module, x, mask = make("nystromformer", landmarks=4), inputs(), padding_mask([13, 8])
    mask[0, 4:7] = mask[1, 0] = False
    nn.init.zeros_(module.taps)  # which alone knows positions
    for b in range(2):
        close(module(x, mask)[b, mask[b]], explicit("nystromformer", module, x[b, mask[b]]))


def test_nystromformer_with_a_landmark_a_row_is_softmax_attention():
    module, softmax = make("nystromformer", landmarks=16, iterations=40), make("softmax")
    nn.init.zeros_(module.taps)
    module.load_state_dict(softmax.state_dict(), strict=False)
    close(module(inputs()), softmax(inputs()), 1e-8)


def test_linformer_of_a_row_a_combination_is_softmax_attention():
    module, softmax = make("linformer", rank=LENGTH), make("softmax")
    module.load_state_dict(softmax.state_dict(), strict=False)
    nn.init.eye_(module.key_rows)
    nn.init.eye_(module.value_rows)
    close(module(inputs()), softmax(inputs()))


@pytest.mark.parametrize("length", [1, 2, 12, LENGTH])
def test_s4d_is_a_recurrence_in_either_direction(length):
    torch.manual_seed(0)
    module = S4D(WIDTH, LENGTH, states=4).double()
    x = inputs(length, batch=1)
    step, pole = module.log_step.exp(), torch.complex(-module.log_decay.exp(), module.frequency)
    carried = (step * pole).exp()
    entered = (carried - 1) / pole
    forth, back = torch.view_as_complex(module.readout)
    mixed = module.skip * x[0]
    state = torch.zeros_like(pole)
    for i in range(length):
        state = carried * state + entered * x[0, i].unsqueeze(1)
        mixed[i] = mixed[i] + 2 * (forth * state).sum(1).real
    state = torch.zeros_like(pole)
    for i in reversed(range(length)):
        mixed[i] = mixed[i] + 2 * (back * state).sum(1).real
        state = carried * state + entered * x[0, i].unsqueeze(1)
    values, gates = module.output(nn.functional.gelu(mixed)).chunk(2, dim=1)
    close(module(x)[0], values * gates.sigmoid())


def test_s4d_kernels_against_scipy():
    """A state space of real pairs, sampled with zero-order hold."""
    signal = pytest.importorskip("scipy.signal")
    np = pytest.importorskip("numpy")
    torch.manual_seed(0)
    module = S4D(3, 40, states=1).double()
    nn.init.normal_(module.frequency, std=10)
    for channel in range(3):
        decay, frequency = module.log_decay[channel].exp().item(), module.frequency[channel].item()
        matrix = [[-decay, -frequency], [frequency, -decay]]
        step = module.log_step[channel].exp().item()
        for kernel, readout in zip(module.kernels(), module.readout, strict=True):
            real, imaginary = readout[channel, 0].tolist()
            system = (matrix, [[1], [0]], [[2 * real, -2 * imaginary]], [[0]])
            discrete = signal.cont2discrete(tuple(map(np.array, system)), step)
            _, response, _ = signal.dlsim(discrete, [1.0] + 40 * [0.0])
            close(kernel[channel, :40], torch.from_numpy(response)[1:, 0])


def test_s4d_starts_as_published():
    torch.manual_seed(0)
    module = S4D(200, 9)
    assert module.log_decay.exp().allclose(torch.tensor(0.5))
    close(module.frequency[7], math.pi * torch.arange(32), 1e-6)
    assert 1e-3 <= module.log_step.exp().min() < 1.2e-3
    assert 8e-2 < module.log_step.exp().max() <= 1e-1
    # E (step, D), 2 E n (poles), 4 E n (C of two directions), and Linear(E, 2 E).
    count = sum(p.numel() for p in module.parameters())
    assert count == 200 * (2 + 6 * 32) + 200 * 400 + 400


def copy_projection(module, query, key, value, output):
    """Weights of a library's linear layers without bias of their own."""
    with torch.no_grad():
        module.projection.weight.copy_(torch.cat((query, key, value)))
        module.output.weight.copy_(output.weight)
        module.output.bias.copy_(output.bias)
        module.projection.bias.zero_()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_transformer_block_against_torch(norm_first, masked):
    ours = TransformerBlock(WIDTH, LENGTH, heads=HEADS, hidden=9, norm_first=norm_first).double()
    theirs = nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        9,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=norm_first,
        dtype=torch.float64,
    )
    names = {
        "self_attn.in_proj_": "mixer.projection.",
        "self_attn.out_proj.": "mixer.output.",
        "norm1.": "mixer_norm.",
        "norm2.": "row_norm.",
        "linear1.": "rows.0.",
        "linear2.": "rows.3.",
    }
    state = theirs.state_dict()
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    ours.load_state_dict(state)
    x, mask = inputs(), padding_mask([13, 8]) if masked else None
    expected = theirs(x, src_key_padding_mask=None if mask is None else ~mask)
    valid = slice(None) if mask is None else mask
    close(ours(x, mask)[valid], expected[valid])


@pytest.mark.filterwarnings("ignore")
def test_linformer_against_the_library():
    library = pytest.importorskip("linformer")
    for length in (LENGTH, 7):
        theirs = library.LinformerSelfAttention(WIDTH, LENGTH, k=5, heads=HEADS).double()
        ours = make("linformer", rank=5)
        copy_projection(
            ours, theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight, theirs.to_out
        )
        ours.key_rows.data, ours.value_rows.data = theirs.proj_k.data, theirs.proj_v.data
        close(ours(inputs(length)), theirs(inputs(length)))


@pytest.mark.filterwarnings("ignore")
def test_nystromformer_against_the_library():
    """One sequence and one head: the library scales by the norms of the whole batch."""
    library = pytest.importorskip("nystrom_attention")
    theirs = library.NystromAttention(
        WIDTH, WIDTH, heads=1, num_landmarks=4, residual_conv_kernel=5
    ).double()
    ours = make("nystromformer", heads=1, landmarks=4, kernel=5)
    copy_projection(ours, *theirs.to_qkv.weight.chunk(3), theirs.to_out[0])
    ours.taps.data = theirs.res_conv.weight.data[:, 0, :, 0]
    close(ours(inputs(12, batch=1)), theirs(inputs(12, batch=1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [1, 3, 5])
def test_local_attention_against_the_library(window):
    library = pytest.importorskip("local_attention")
    theirs = library.LocalAttention(
        window,
        causal=False,
        look_forward=1,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    module, mask = make("local", window=window), padding_mask([13, 8])
    query, key, value = torch.randn(3, 2, HEADS, LENGTH, WIDTH // HEADS, dtype=torch.float64)
    expected = theirs(query, key, value, mask=mask)
    seen = mask[:, None].expand(-1, HEADS, -1)
    close(module.attend(query, key, value, mask)[seen], expected[seen])


def test_local_attention_sees_its_window_and_no_more():
    module, x = make("local", window=3), inputs(batch=1).requires_grad_()
    for row in range(LENGTH):
        (gradient,) = torch.autograd.grad(module(x)[0, row].sum(), x)
        seen = (torch.arange(LENGTH) - row).abs() <= 3
        assert torch.equal(gradient[0].any(1), seen)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_shares_layers_and_their_errors(name):
    kind = type(make(name))
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: heads must divide width"):
        make(name, heads=4)
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: heads must be at least 1"):
        make(name, heads=0)
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: length must be an integer"):
        kind(6, 2.5)
    assert f"{kind.__name__}(width=6, length=13, heads=2" in repr(make(name)).replace("\n  ", "")


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: Linformer(4, 4, rank=0), "Linformer: rank must be at least 1 (got 0)"),
        (lambda: LocalAttention(4, 4, window=0), "LocalAttention: window must be at least 1"),
        (lambda: Nystromformer(4, 4, landmarks=0), "Nystromformer: landmarks must be at least 1"),
        (lambda: Nystromformer(4, 4, iterations=0), "Nystromformer: iterations must be at least"),
        (lambda: Nystromformer(4, 4, kernel=4), "Nystromformer: kernel must be odd (got 4)"),
        (lambda: S4D(4, 0), "S4D: length must be at least 1 (got 0)"),
        (lambda: S4D(4, 4, states=0), "S4D: states must be at least 1 (got 0)"),
        (
            lambda: EncoderBlock(SoftmaxAttention(4, 8), 4, 9),
            "EncoderBlock: mixer must take and give width 4 up to length 9 (got SoftmaxAttention(",
        ),
        (
            lambda: EncoderBlock(Paramixer(4, 9, value_width=5), 4, 9),
            "EncoderBlock: mixer must take and give width 4 up to length 9 (got Paramixer(",
        ),
        (lambda: TransformerBlock(4, 4, hidden=0), "TransformerBlock: hidden must be at least 1"),
    ],
)
def test_construction_errors(make_one, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make_one()


def test_dropout_in_training_only():
    x = inputs()
    for module in (make("softmax", dropout=0.5), S4D(WIDTH, LENGTH, dropout=0.5).double()):
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert torch.equal(module(x), module(x))


SMALL = {
    SoftmaxAttention: {},
    TransformerBlock: {},
    Linformer: {"rank": 4},
    Nystromformer: {"landmarks": 4, "iterations": 3, "kernel": 3},
    LocalAttention: {"window": 5},
    S4D: {"states": 4},
}


@pytest.mark.parametrize("kind", SMALL)
def test_classifier_around_each(kind):
    """Learns the value of the marked row among others, all random."""
    torch.manual_seed(0)
    mixer = partial(kind, **SMALL[kind])
    classifier = SequenceClassifier(
        [mixer(8, 10), EncoderBlock(mixer(8, 10), 8, 10)],
        width=8,
        length=10,
        classes=1,
        features=2,
        pooling="valid",
        norm=True,
    )
    mask = torch.arange(10) < torch.randint(2, 11, (64, 1))
    values = torch.rand(64, 10) * mask
    marks = nn.functional.one_hot(torch.zeros(64, dtype=torch.int64), 10)
    x = torch.stack((values, marks), dim=2)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(classifier(x, mask).squeeze(1), values[:, 0])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
