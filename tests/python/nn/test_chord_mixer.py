import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from paramixer.nn import ChordMixer, SequenceClassifier
from support import close

WIDTH, LENGTH = 10, 12  # five tracks of two channels
VARIANTS = {
    "default": {},
    "sizes": {"tracks": 2, "blocks": 3, "hidden": 7},
    "one track": {"tracks": 1, "blocks": 1},
    "layer, batch": {"postnorm": "batch"},
    "batch, batch": {"prenorm": "batch", "postnorm": "batch"},
    "none, layer": {"prenorm": "none", "postnorm": "layer"},
}
MASKS = {
    "prefixes": torch.arange(LENGTH) < torch.tensor([[12], [7], [1], [0]]),
    "suffixes": torch.arange(LENGTH) >= torch.tensor([[0], [4], [11], [12]]),
    "holes": torch.arange(LENGTH) % torch.tensor([[2], [3], [5], [7]]) != 1,
}


def make(width=WIDTH, length=LENGTH, dtype=torch.float64, **options):
    torch.manual_seed(0)
    module = ChordMixer(width, length, **options)
    with torch.no_grad():
        for parameter in module.parameters():  # biases and norms that matter
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.to(dtype)


def inputs(length=LENGTH, batch=4, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, length, WIDTH, dtype=dtype)


def rotated(x, tracks):
    """Rows x (n, D) as published: track 0 stays, track t is rolled by -2^(t-1)."""
    first, *others = x.chunk(tracks, dim=1)
    return torch.cat([first, *(torch.roll(x, -(2**t), 0) for t, x in enumerate(others))], dim=1)


def published(module, sequences):
    """The published form for variable lengths: all rows concatenated, rolled one by one."""
    rows, lengths = torch.cat(sequences), [len(sequence) for sequence in sequences]
    for block in module.blocks:
        mixed = block.output(F.gelu(block.hidden(block.prenorm(rows))))
        mixed = torch.cat([rotated(x, module.tracks) for x in mixed.split(lengths)])
        rows = block.postnorm(rows + mixed)
    return rows


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["none", *MASKS])
@pytest.mark.parametrize("training", [False, True])
def test_formula_and_gradients(options, mask, training):
    module = make(**options).train(training)
    twin = copy.deepcopy(module)
    x = inputs().requires_grad_()
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    output = module(x, mask)
    expected = published(twin, [sequence[rows] for sequence, rows in zip(x, valid, strict=True)])
    close(output[valid], expected)
    assert not output[~valid].any()
    upstream = torch.randn_like(output)
    actual = torch.autograd.grad(output, [x, *module.parameters()], upstream)
    wanted = torch.autograd.grad(expected, [x, *twin.parameters()], upstream[valid])
    for one, other in zip(actual, wanted, strict=True):
        close(one, other, 1e-11)
    for one, other in zip(module.buffers(), twin.buffers(), strict=True):
        close(one, other)


@pytest.mark.parametrize("length", [1, 2, 5, LENGTH])
def test_shorter_batches(length):
    module, x = make(), inputs(length)
    close(module(x).flatten(0, 1), published(module, list(x)))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_padded_sequences_are_what_they_are_alone(mask):
    module, x = make(), inputs()
    output = module(x, mask)
    for sequence, valid, result in zip(x, mask, output, strict=True):
        close(result[valid], module(sequence[valid].unsqueeze(0)).squeeze(0))


@pytest.mark.parametrize("junk", [1e6, float("inf"), float("nan")])
@pytest.mark.parametrize("options", [{}, {"prenorm": "batch", "postnorm": "batch"}])
def test_what_padding_holds_changes_nothing(junk, options):
    module, mask = make(**options), MASKS["holes"]
    results = []
    for content in (0.0, junk):
        x = inputs().masked_fill(~mask.unsqueeze(2), content).requires_grad_()
        output = module(x, mask)
        results.append(
            [output, *torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])]
        )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("length", [2, 3, 8, 9])
def test_every_row_reaches_every_other(length):
    """After ceil(log2 N) blocks, and not before where N is a power of two."""

    def all_reached(blocks):
        tracks = 1 + (length - 1).bit_length()
        module = ChordMixer(2 * tracks, length, blocks=blocks).double()
        x = torch.randn(1, length, 2 * tracks, dtype=torch.float64, requires_grad=True)
        reached = [torch.autograd.grad(row.sum(), x, retain_graph=True)[0] for row in module(x)[0]]
        return bool(torch.stack(reached).squeeze(1).any(2).all())

    assert all_reached(None)
    if length in (2, 8):
        assert length == 2 or not all_reached((length - 1).bit_length() - 1)


def test_gradcheck():
    module, mask = make(tracks=2, blocks=2), torch.tensor([[True, False, True], [True, True, True]])
    x = inputs(3, batch=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, mask), x)
    assert torch.autograd.gradgradcheck(lambda x: module(x, mask), x)


# Published for the tasks of Long Range Arena: length, channels of a track, hidden, norms.
PUBLISHED = {
    "listops": (2048, 8, 88, "layer", "batch", 96, 11),
    "image": (1024, 28, 420, "batch", "batch", 308, 10),
    "text": (4096, 16, 96, "layer", "batch", 208, 12),
    "retrieval": (4000, 20, 128, "layer", "batch", 260, 12),
    "pathfinder": (1024, 24, 320, "batch", "batch", 264, 10),
    "path-x": (16384, 10, 128, "batch", "batch", 150, 14),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_sizes(task):
    length, track, hidden, prenorm, postnorm, width, blocks = PUBLISHED[task]
    with torch.device("meta"):
        module = ChordMixer(width, length, hidden=hidden, prenorm=prenorm, postnorm=postnorm)
    assert (width // module.tracks, len(module.blocks)) == (track, blocks)
    layers = 2 * width * hidden + hidden + width
    assert sum(p.numel() for p in module.parameters()) == blocks * (layers + 4 * width)


def test_initial_weights():
    torch.manual_seed(0)
    block = ChordMixer(60, 1024 // 2, hidden=40).blocks[0]
    for layer in (block.hidden, block.output):
        assert not layer.bias.any()
        bound = (6 / (60 + 40)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("shape", [(0, LENGTH), (2, 0), (0, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_empty(shape, masked):
    x = torch.zeros(*shape, WIDTH, requires_grad=True)
    mask = torch.ones(shape, dtype=torch.bool) if masked else None
    output = make(dtype=torch.float32)(x, mask)
    assert output.shape == x.shape
    output.sum().backward()
    assert x.grad.shape == x.shape


def test_dropout_in_training_only():
    module, x = make(dropout=0.5), inputs()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_copies():
    module = make(postnorm="batch")
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other = ChordMixer(WIDTH, LENGTH, postnorm="batch").double()
    other.load_state_dict(torch.load(stored))
    twin = copy.deepcopy(module)
    for clone in (other, twin):
        assert torch.equal(clone.eval()(inputs()), module.eval()(inputs()))


@pytest.mark.parametrize("masked", [False, True])
def test_compile(masked):
    torch._dynamo.reset()
    module = make(dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, mask = inputs(dtype=torch.float32), MASKS["prefixes"] if masked else None
    results = []
    for function in (compiled, module):
        leaf = x.clone().requires_grad_()
        output = function(leaf, mask)
        results.append([output, *torch.autograd.grad(output.sin().sum(), leaf)])
    torch.testing.assert_close(*results)


def test_export_with_dynamic_batch_and_length():
    module = make(dtype=torch.float32, postnorm="batch").eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=LENGTH)
    sizes = {0: batch, 1: length}
    example = (inputs(8, dtype=torch.float32), MASKS["prefixes"][:, :8].clone())
    program = torch.export.export(module, example, dynamic_shapes=(sizes, sizes)).module()
    x, mask = inputs(11, batch=3, dtype=torch.float32), MASKS["holes"][:3, :11]
    torch.testing.assert_close(program(x, mask), module(x, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    x, mask = inputs(), MASKS["prefixes"]
    expected = make()(x, mask)
    with torch.autocast("cpu", dtype):
        output = make(dtype=torch.float32)(x.float(), mask)
    assert output.dtype == torch.float32  # the residual stream
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    output = make(dtype=dtype)(x.to(dtype), mask)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=4 * tolerance)


def test_classifies_sequences_of_many_lengths():
    """Whether a sequence's first token is its last: no pooled row knows that alone."""
    torch.manual_seed(0)
    lengths = torch.randint(2, 17, (96, 1))
    mask = torch.arange(16) < lengths
    tokens = torch.randint(2, (96, 16))
    labels = (tokens[:, 0] == tokens.gather(1, lengths - 1)[:, 0]).long()
    # Where a sequence begins is not in the ring: a third token says so.
    tokens[:, 0] += 2
    mixer = ChordMixer(20, 16, hidden=32)
    network = SequenceClassifier(
        [mixer], width=20, length=16, classes=2, vocabulary=4, pooling="valid"
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(network(tokens, mask), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(tokens, mask).argmax(1) == labels).float().mean() > 0.95


def test_repr():
    assert "width=10, length=12, tracks=5" in repr(make())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"width": 12},
            "width must be a multiple of the tracks, by default 1 + ceil(log2 length) ",
        ),
        ({"width": 12}, "(got width 12 and 5 tracks)"),
        ({"tracks": 3}, "(got width 10 and 3 tracks)"),
        ({"tracks": 65}, "tracks must be at least 1 and at most 64 (got 65)"),
        ({"width": 0}, "width must be at least 1 (got 0)"),
        ({"length": 0}, "length must be at least 1 (got 0)"),
        ({"hidden": 0}, "hidden must be at least 1 (got 0)"),
        ({"blocks": 0}, "blocks must be at least 1 (got 0)"),
        ({"prenorm": "rms"}, "prenorm must be one of ('none', 'layer', 'batch') (got 'rms')"),
        ({"postnorm": None}, "postnorm must be one of ('none', 'layer', 'batch') (got None)"),
    ],
)
def test_construction_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ChordMixer(**({"width": WIDTH, "length": LENGTH} | arguments))
    assert str(error.value).startswith("ChordMixer: ")


@pytest.mark.parametrize("name", ["width", "length", "tracks", "blocks", "hidden"])
def test_sizes_are_integers(name):
    with pytest.raises(TypeError, match=rf"ChordMixer: {name} must be an integer \(got 2.5\)"):
        ChordMixer(**({"width": WIDTH, "length": LENGTH} | {name: 2.5}))


X, MASK = torch.zeros(3, LENGTH, WIDTH), torch.ones(3, LENGTH, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[..., :7],), ValueError, "x must be (B, N, 10) (got shape [3, 12, 7])"),
        ((X[0],), ValueError, "x must be (B, N, 10) (got shape [12, 10])"),
        ((X.long(),), TypeError, "x must be floating (got torch.int64)"),
        ((torch.zeros(3, 13, WIDTH),), ValueError, "x must not be longer than length 12 (got N = "),
        ((X, MASK[:, 1:]), ValueError, "mask must be (B, N) = [3, 12] (got shape [3, 11])"),
        ((X, MASK.float()), TypeError, "mask must be bool (got torch.float32)"),
    ],
)
def test_call_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"ChordMixer: {message}")):
        make(dtype=torch.float32)(*arguments)
