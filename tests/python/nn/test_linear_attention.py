"""Linear attention against explicit N x N sums, and what the feature maps promise."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from paramixer.nn import (
    EluPlusOne,
    Favor,
    FeatureMap,
    FeedForwardKernel,
    LinearAttention,
    Relu,
    SequenceClassifier,
    SimpleTron,
    feature_maps,
)
from support import assert_learns, close, padding_mask, peak_bytes
from torch import nn

WIDTH, HEADS, HEAD_WIDTH = 12, 3, 4
MAPS = {
    "elu": lambda: EluPlusOne(HEAD_WIDTH),
    "relu": lambda: Relu(HEAD_WIDTH),
    "favor": lambda: Favor(HEAD_WIDTH),
    "favor-many": lambda: Favor(HEAD_WIDTH, 11),
    "single": lambda: FeedForwardKernel(HEADS, HEAD_WIDTH),
    "single-bias": lambda: FeedForwardKernel(HEADS, HEAD_WIDTH, bias=True),
    "gated": lambda: FeedForwardKernel(HEADS, HEAD_WIDTH, gate="full"),
    "gated-2": lambda: FeedForwardKernel(HEADS, HEAD_WIDTH, gate="full", layers=2),
    "low-rank-3": lambda: FeedForwardKernel(HEADS, HEAD_WIDTH, gate="low_rank", layers=3, rank=2),
}
ROW_WISE = [name for name in MAPS if not name.startswith("favor")]
every_map = pytest.mark.parametrize("name", MAPS)
every_row_wise_map = pytest.mark.parametrize("name", ROW_WISE)
both_precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)


def make(name, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return LinearAttention(WIDTH, HEADS, feature_map=MAPS[name](), **options).to(dtype)


def inputs(length=9, batch=2, dtype=torch.float64, width=WIDTH):
    torch.manual_seed(1)
    return torch.randn(batch, length, width, dtype=dtype)


def softmax_features(projection, rows, lowest_constant):
    """The exponents and features of FAVOR+ of one head, a row and a feature at a time."""
    d, count = rows.shape[1], len(projection)
    exponents = torch.stack([projection @ row / d**0.25 - row @ row / (2 * d**0.5) for row in rows])
    constant = lowest_constant(exponents)
    return ((exponents - constant).exp() + 1e-4) / count**0.5


def kernel_features(kernel, head, rows):
    """The trained kernel of one head as its authors write it."""
    for index, layer in enumerate(kernel.layers):
        result = rows @ layer.weight[head]
        if layer.bias is not None:
            result = result + layer.bias[head]
        if index == len(kernel.layers) - 1:
            result = torch.log1p(result.exp())
        gates = [gate[head] for gate in layer.gates]
        if len(gates) == 1:
            result = result * torch.sigmoid(rows @ gates[0])
        if len(gates) == 2:
            result = result * torch.sigmoid(rows @ gates[0] @ gates[1])
        rows = result
    return rows


def explicit_features(feature_map, head, queries, keys):
    if isinstance(feature_map, EluPlusOne):
        return F.elu(queries) + 1, F.elu(keys) + 1
    if isinstance(feature_map, Relu):
        return queries.clamp(min=0), keys.clamp(min=0)
    if isinstance(feature_map, Favor):
        w = feature_map.projection
        own = softmax_features(w, queries, lambda e: e.max(1, keepdim=True).values)
        return own, softmax_features(w, keys, lambda e: e.max())
    return tuple(kernel_features(feature_map, head, rows) for rows in (queries, keys))


def explicit(module, x, memory=None):
    """One sequence x (N, E) by explicit N x N weights; also the weights of every head."""
    memory = x if memory is None else memory
    outputs, matrices = [], []
    for head in range(module.heads):
        own = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        q, k, v = (
            F.linear(rows, layer.weight[own], layer.bias[own])
            for rows, layer in ((x, module.query), (memory, module.key), (memory, module.value))
        )
        queries, keys = explicit_features(module.feature_map, head, q, k)
        weights = queries @ keys.T
        if module.causal:
            weights = weights * torch.ones_like(weights).tril()
        weights = weights / weights.sum(1, keepdim=True)
        matrices.append(weights.nan_to_num(0))
        outputs.append(matrices[-1] @ v)
    return module.output(torch.cat(outputs, dim=1)), torch.stack(matrices)


@every_map
@both_precisions
def test_is_the_explicit_sum(name, dtype, tolerance):
    module, x = make(name, dtype), inputs(dtype=dtype)
    mask = padding_mask([9, 5])
    mask[0, 4:7] = mask[1, 0] = False
    results, matrices = module(x, mask), module.attention(x, mask)
    for result, matrix, rows, valid in zip(results, matrices, x, mask, strict=True):
        expected, weights = explicit(module, rows[valid])
        close(result[valid], expected, tolerance)
        close(matrix[:, valid][..., valid], weights, tolerance)
        assert (matrix[:, ~valid] == 0).all()
        assert (matrix[..., ~valid] == 0).all()
    if name != "relu":
        close(matrices.sum(3), mask[:, None].expand(-1, HEADS, -1).to(dtype), tolerance)


@every_row_wise_map
@both_precisions
@pytest.mark.parametrize("length", [9, 150])
def test_causal_is_the_explicit_sum(name, dtype, tolerance, length):
    """150 rows are more than two chunks of the scan."""
    module, x = make(name, dtype, causal=True), inputs(length, dtype=dtype)
    for b, sequence in enumerate(x):
        expected, weights = explicit(module, sequence)
        close(module(x)[b], expected, tolerance)
        close(module.attention(x)[b], weights, tolerance)


@pytest.mark.parametrize("name", ["elu", "favor", "single", "gated", "low-rank-3"])
def test_4000_rows(name):
    module, x = make(name, torch.float32), inputs(4000, dtype=torch.float32, batch=1)
    with torch.no_grad():
        expected, weights = explicit(module, x[0])
        close(module(x)[0], expected, 1e-5)
        close(weights.sum(2), torch.ones(HEADS, 4000), 1e-6)


def test_no_later_row_has_a_gradient():
    module, x = make("gated", causal=True), inputs(150, batch=1).requires_grad_()
    for row in (0, 63, 64, 100):
        (gradient,) = torch.autograd.grad(module(x)[0, row].sum(), x)
        assert (gradient[0, row + 1 :] == 0).all()
        assert gradient[0, : row + 1].any(1).all()


@every_row_wise_map
@both_precisions
def test_steps_are_the_causal_form(name, dtype, tolerance):
    module, x = make(name, dtype, causal=True), inputs(70, dtype=dtype)
    state, rows = None, []
    for row in x.unbind(1):
        result, state = module.step(row, state)
        rows.append(result)
    close(torch.stack(rows, dim=1), module(x), tolerance)
    assert state.product.shape == (2, HEADS, HEAD_WIDTH, HEAD_WIDTH)
    assert state.total.shape == (2, HEADS, HEAD_WIDTH)


def test_steps_of_16_bits_have_a_float32_state():
    module, x = make("gated", torch.bfloat16, causal=True), inputs(3, dtype=torch.bfloat16)
    result, state = module.step(x[:, 0])
    assert (result.dtype, state.product.dtype, state.total.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


def test_export_of_several_chunks():
    module, x = make("gated", causal=True), inputs(128)
    dims = {1: torch.export.Dim("length", max=1000)}
    program = torch.export.export(module, (x,), dynamic_shapes={"x": dims})
    for other in (inputs(64), inputs(300)):
        close(program.module()(other), module(other))


@every_map
def test_cross_attention(name):
    module, x, memory = make(name), inputs(9), inputs(6) - 0.3
    mask, memory_mask = padding_mask([9, 4]), padding_mask([6, 2], 6)
    results = module(x, mask, memory, memory_mask)
    for b, (rows, keys) in enumerate(((9, 6), (4, 2))):
        close(results[b, :rows], explicit(module, x[b, :rows], memory[b, :keys])[0])
        assert (results[b, rows:] == 0).all()


class Scaled(FeatureMap):
    """Another map times a number."""

    def __init__(self, feature_map, scale):
        super().__init__(feature_map.features)
        self.feature_map, self.scale = feature_map, scale

    def forward(self, x):
        return self.feature_map(x) * self.scale


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_scale_of_the_features_cancels(causal, scale):
    module, x = make("gated", torch.float32, causal=causal), inputs(dtype=torch.float32)
    expected = module(x)
    module.feature_map = Scaled(module.feature_map, scale)
    close(module(x), expected, 1e-6)


def test_masking_before_the_map_is_another_thing():
    """phi(0) > 0: padding masked before phi would stay in the normaliser."""
    module, x, mask = make("gated"), inputs(512, batch=1), padding_mask([128], 512)
    nn.init.zeros_(module.key.bias)
    nn.init.zeros_(module.value.bias)
    nn.init.zeros_(module.output.bias)
    right = module(x, mask)[0, :128]
    close(right, module(x[:, :128])[0])
    wrong = module(x.masked_fill(~mask.unsqueeze(2), 0))[0, :128]
    assert 0.2 < wrong.norm() / right.norm() < 0.4


@pytest.mark.parametrize("name", [name for name in MAPS if name != "relu"])
@pytest.mark.parametrize("scale", [1, 3])
def test_features_are_positive(name, scale):
    torch.manual_seed(0)
    feature_map = MAPS[name]()
    x = scale * torch.randn(4, HEADS, 5000, HEAD_WIDTH)
    for features in (feature_map(x), feature_map.queries(x), feature_map.keys(x)):
        assert features.shape == (4, HEADS, 5000, feature_map.features)
        assert features.min() > 0


def test_a_row_that_attends_to_nothing_is_zero():
    module, x = make("relu"), inputs().requires_grad_()
    nn.init.zeros_(module.output.bias)
    with torch.no_grad():
        module.query.bias.fill_(-1e3)
    result = module(x)
    assert (result == 0).all()
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.isfinite().all()


def test_orthogonal_at_the_start():
    kernel = FeedForwardKernel(8, 64, layers=3, gate="low_rank")
    for layer in kernel.layers:
        assert (layer.weight @ layer.weight.mT - torch.eye(64)).abs().max() < 1e-6
        assert layer.gates[0].shape == (8, 64, 16)
        assert layer.gates[0].std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
        assert layer.gates[1].std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.03)
    assert kernel.orthogonality_loss() < 1e-12
    assert LinearAttention(8).orthogonality_loss() == 0


def test_orthogonality_loss():
    kernel = FeedForwardKernel(HEADS, HEAD_WIDTH, layers=2, gate="full").double()
    nn.init.normal_(kernel.layers[1].weight)
    weight = kernel.layers[1].weight
    errors = [(w @ w.T - torch.eye(HEAD_WIDTH)).square().sum() / 16 for w in weight]
    close(kernel.orthogonality_loss(), sum(errors) / HEADS)
    kernel.orthogonality_loss().backward()
    assert weight.grad.any()


def trained(regulariser):
    """The orthogonality loss after training on values that a kernel has to be bent for."""
    torch.manual_seed(0)
    module = LinearAttention(16, 2, feature_map="gated")
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    for _ in range(100):
        x = torch.randn(8, 16, 16)
        nearest = (x @ x.mT).argmax(2, keepdim=True).expand(-1, -1, 16)
        loss = F.mse_loss(module(x), x.gather(1, nearest) * 2)
        (loss + regulariser * module.orthogonality_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.orthogonality_loss().item()


def test_regulariser_keeps_weights_orthogonal():
    free = trained(0)
    assert free > 5e-4
    assert trained(0.1) < 0.5 * free


def test_random_features_estimate_softmax_attention():
    torch.manual_seed(0)
    module = LinearAttention(8, feature_map=Favor(8, 4096)).double()
    x = inputs(width=8) / 2
    scores = module.query(x) @ module.key(x).mT / 8**0.5
    error = module.attention(x)[:, 0] - scores.softmax(2)
    assert error.norm() < 0.02 * scores.softmax(2).norm()


def test_random_features_are_orthogonal_in_blocks():
    torch.manual_seed(0)
    feature_map = Favor(16, 40)
    first = feature_map.projection.clone()
    for block in first.split(16):
        cosines = F.normalize(block) @ F.normalize(block).T
        close(cosines, torch.eye(len(block)), 1e-5)
    lengths = torch.cat([Favor(16, 400).projection for _ in range(5)]).norm(dim=1)
    assert lengths.square().mean().item() == pytest.approx(16, rel=0.05)
    assert Favor(64).features == math.floor(64 * math.log(64))
    assert Favor(1).features == 1
    feature_map.redraw()
    assert not torch.equal(feature_map.projection, first)
    assert "projection" in feature_map.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_random_features_against_the_performer_library(monkeypatch):
    """Without epsilon: the library takes its maximum before it subtracts |x|^2 / 2."""
    library = pytest.importorskip("performer_pytorch.performer_pytorch")
    monkeypatch.setattr(feature_maps, "EPSILON", 0.0)
    module, x = make("favor-many"), inputs()
    query, key, value = (
        layer(x).unflatten(2, (HEADS, HEAD_WIDTH)).transpose(1, 2)
        for layer in (module.query, module.key, module.value)
    )
    options = {"projection_matrix": module.feature_map.projection, "eps": 0.0}
    queries = library.softmax_kernel(query, is_query=True, **options)
    keys = library.softmax_kernel(key, is_query=False, **options)
    mixed = library.linear_attention(queries, keys, value)
    close(module(x), module.output(mixed.transpose(1, 2).flatten(2)))


def test_kernel_dropout_in_training_only():
    kernel = FeedForwardKernel(HEADS, HEAD_WIDTH, layers=2, gate="full", dropout=0.5)
    x = torch.randn(2, HEADS, 5, HEAD_WIDTH)
    assert not torch.equal(kernel(x), kernel(x))
    kernel.eval()
    assert torch.equal(kernel(x), kernel(x))


@pytest.mark.parametrize("output", [False, True])
@both_precisions
def test_simpletron_is_the_explicit_sum(output, dtype, tolerance):
    torch.manual_seed(0)
    module = SimpleTron(WIDTH, HEADS, output=output).to(dtype)
    x, mask = inputs(dtype=dtype), padding_mask([9, 5])
    results = module(x, mask)
    for b, length in enumerate((9, 5)):
        row = x[b, :length]
        q, k, v = (
            layer(row).unflatten(1, (HEADS, HEAD_WIDTH)).transpose(0, 1)
            for layer in (module.query, module.key, module.value)
        )
        mixed = (q @ k.mT / length**0.5 @ v).transpose(0, 1).flatten(1)
        close(results[b, :length], module.output(mixed), tolerance)


def test_simpletron_dropout_in_training_only():
    module, x = SimpleTron(WIDTH, HEADS, dropout=0.5).double(), inputs()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def published_parameters(mixer, width, feed_forward, layers, rows, embeddings, classes):
    """Of the authors' pre-norm encoder around the mixer: positions for all rows, a hidden head."""
    block = 2 * 2 * width + parameters(mixer)
    block += (width + 1) * feed_forward + (feed_forward + 1) * width
    head = 2 * width + (width + 1) * feed_forward + (feed_forward + 1) * classes
    return layers * block + head + (rows + embeddings) * width


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LinearAttention(512, 8), 21019658),  # softmax attention has the same layers
        (lambda: LinearAttention(512, 8, feature_map="gated"), 21412874),
        (
            lambda: LinearAttention(
                512, 8, feature_map=FeedForwardKernel(8, 64, layers=2, gate="full")
            ),
            21806090,
        ),
        (
            lambda: LinearAttention(
                512, 8, feature_map=FeedForwardKernel(8, 64, layers=3, gate="low_rank")
            ),
            21904394,
        ),
        (lambda: SimpleTron(512, 8), 19443722),
    ],
)
def test_published_numbers_of_parameters(make, expected):
    """ListOps: 2000 rows and the class token's; 17 embeddings, that of the class token included."""
    with torch.device("meta"):
        mixer = make()
    assert published_parameters(mixer, 512, 2048, 6, 2001, 17, 10) == expected


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_4000_rows_of_64_channels_under_autocast(causal, dtype):
    """The unscaled normaliser passes what float16 holds here."""
    torch.manual_seed(0)
    module = LinearAttention(128, 2, feature_map="single", causal=causal)
    x = torch.randn(1, 4000, 128)
    with torch.no_grad():
        queries, keys = (
            module.feature_map(layer(x).unflatten(2, (2, 64)).transpose(1, 2))
            for layer in (module.query, module.key)
        )
        assert (queries @ keys.sum(2).unsqueeze(3)).max() > 6e4
        expected = module(x)
        with torch.autocast("cpu", dtype):
            assert (module(x) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_memory(causal):
    """At real widths: a step of training keeps some tensors of the input's size, no N d^2."""
    module = LinearAttention(64, 1, feature_map="gated", causal=causal)
    peaks = []
    for length in (1024, 2048, 4096, 8192):
        x = torch.randn(1, length, 64)
        peaks.append(peak_bytes(lambda x=x: module(x).sum().backward()))
    slopes = torch.tensor(peaks).diff() / (64 * 4 * torch.tensor([1024, 2048, 4096]))
    assert slopes.max() < 1.1 * slopes.min()
    assert slopes.max() < 32  # tensors of the input's size; N d^2 would be 64 of them


def needle(generator):
    """A token 4 .. 7 somewhere among tokens 0 .. 3: which one is it?"""
    tokens = torch.randint(4, (64, 64), generator=generator)
    target = torch.randint(4, (64,), generator=generator)
    place = torch.randint(1, 64, (64, 1), generator=generator)
    return tokens.scatter(1, place, target.unsqueeze(1) + 4), target


@pytest.mark.parametrize(
    "name",
    [
        "elu",
        "gated",
        pytest.param("single", marks=pytest.mark.slow),
        pytest.param("gated-2", marks=pytest.mark.slow),
    ],
)
def test_trains(name):
    """The first row has to find the needle, within 200 steps."""
    torch.manual_seed(0)
    layers = {"gated-2": 2}.get(name, 1)
    maps = [
        EluPlusOne(8)
        if name == "elu"
        else FeedForwardKernel(4, 8, layers=layers, gate="none" if name == "single" else "full")
        for _ in range(2)
    ]
    model = SequenceClassifier(
        [LinearAttention(32, 4, feature_map=feature_map) for feature_map in maps],
        width=32,
        length=64,
        classes=4,
        vocabulary=8,
        norm=True,
        pooling="first",
        head_hidden=32,
    )
    assert_learns(model, needle)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: LinearAttention(8, 3),
            ValueError,
            "LinearAttention: heads must divide width (got heads 3 and width 8)",
        ),
        (
            lambda: SimpleTron(8, 3),
            ValueError,
            "SimpleTron: heads must divide width (got heads 3 and width 8)",
        ),
        (lambda: LinearAttention(0), ValueError, "LinearAttention: width must be at least 1"),
        (lambda: LinearAttention(8, 0), ValueError, "LinearAttention: heads must be at least 1"),
        (lambda: LinearAttention(8.0), TypeError, "LinearAttention: width must be an integer"),
        (
            lambda: LinearAttention(8, feature_map="exp"),
            ValueError,
            "LinearAttention: feature_map must be one of ('elu', 'relu', 'favor', 'single', "
            "'gated', 'low_rank') (got 'exp')",
        ),
        (
            lambda: LinearAttention(8, feature_map=nn.ReLU()),
            TypeError,
            "LinearAttention: feature_map must be a name or a FeatureMap (got ReLU)",
        ),
        (
            lambda: LinearAttention(8, feature_map="favor", causal=True),
            ValueError,
            "LinearAttention: feature_map must be row-wise for causal attention (got Favor)",
        ),
        (
            lambda: FeedForwardKernel(2, 4, layers=2),
            ValueError,
            "FeedForwardKernel: layers must be 1 without a gate (got 2)",
        ),
        (
            lambda: FeedForwardKernel(2, 4, gate="full", rank=2),
            ValueError,
            "FeedForwardKernel: rank must be None for gate full (got 2)",
        ),
        (
            lambda: FeedForwardKernel(2, 4, gate="half"),
            ValueError,
            "FeedForwardKernel: gate must be one of ('none', 'full', 'low_rank') (got 'half')",
        ),
        (lambda: Favor(0), ValueError, "Favor: width must be at least 1 (got 0)"),
        (lambda: Favor(4, 0), ValueError, "Favor: features must be at least 1 (got 0)"),
        (lambda: EluPlusOne(1.5), TypeError, "EluPlusOne: features must be an integer (got 1.5)"),
    ],
)
def test_construction_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_call_errors():
    module, causal = make("elu"), make("elu", causal=True)
    x, memory = inputs(), inputs(6)
    with pytest.raises(ValueError, match=r"memory must be \(B, N, 12\) \(got shape \[2, 6, 11\]"):
        module(x, None, memory[..., :11])
    with pytest.raises(ValueError, match=r"memory must have the batch of x \(got shapes \[1, 6, 1"):
        module(x, None, memory[:1])
    with pytest.raises(ValueError, match=r"memory_mask must be \(B, N\) = \[2, 6\] \(got shape"):
        module(x, None, memory, padding_mask([9, 4]))
    with pytest.raises(ValueError, match="memory_mask must be None without memory"):
        module(x, None, None, padding_mask([9, 4]))
    with pytest.raises(ValueError, match="memory must be None for causal attention"):
        causal(x, None, memory)
    with pytest.raises(ValueError, match=r"step needs causal to be True \(got False\)"):
        module.step(x[:, 0])
    with pytest.raises(ValueError, match=r"x must be \(B, E\) = \(B, 12\) \(got shape \[2, 9, 12"):
        causal.step(x)
    with pytest.raises(ValueError, match=r"LinearAttention: mask must be \(B, N\) = \[2, 9\]"):
        module(x, torch.ones(2, 9, 9, dtype=torch.bool))
