"""LAMA against its formulas in loops; padding, sequences without rows and 0 / 0."""

import copy
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from paramixer.nn import LamaClassifier, LamaPooling, SequenceClassifier, diversity_penalty
from support import assert_learns, close, padding_mask, peak_bytes
from torch import nn

WIDTH, HEADS, ROWS = 6, 3, 9
VARIANTS = {
    "default": {},
    "no-mlp": {"mlp": False},
    "sharp": {"temperature": 0.25},
    "given": {"context": "given", "context_width": 4},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
both_contexts = pytest.mark.parametrize("context", ["learned", "mean"])


def make(dtype=torch.float64, **options):
    torch.manual_seed(0)
    module = LamaPooling(WIDTH, HEADS, **options).to(dtype)
    for parameter in module.parameters():  # scores that differ
        nn.init.normal_(parameter)
    return module


def inputs(rows=ROWS, batch=3, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, rows, WIDTH, dtype=dtype)


def contexts(module, dtype=torch.float64):
    torch.manual_seed(2)
    return None if module.context is not None else torch.randn(3, 4, dtype=dtype)


def literal(module, x, context):
    """Pooled rows and attention of one sequence without padding, a bilinear form a head."""
    hidden = x if module.mlp is None else torch.tanh(x @ module.mlp.weight.T + module.mlp.bias)
    scores = torch.empty(len(x), module.heads, dtype=x.dtype)
    for t, u in enumerate(hidden):
        for i in range(module.heads):
            form = torch.outer(module.context_query.weight[i], module.query.weight[i])
            scores[t, i] = torch.tanh(context @ form @ u)
        scores[t] = scores[t] / scores[t].square().sum().sqrt()
    attention = torch.zeros(module.heads, len(x), dtype=x.dtype)
    for i in range(module.heads):
        weights = torch.stack([torch.exp(s / module.temperature) for s in scores[:, i]])
        attention[i] = weights / weights.sum()
    return attention @ x, attention


@every_variant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_is_the_formula_in_loops(options, dtype, tolerance):
    module, x, mask = make(dtype, **options), inputs(dtype=dtype), padding_mask([9, 5, 1])
    context = contexts(module, dtype)
    with torch.no_grad():
        pooled, attention = module(x, mask, context)
        assert pooled.shape == (3, HEADS, WIDTH)
        assert attention.shape == (3, HEADS, ROWS)
        for b, length in enumerate((9, 5, 1)):
            own = module.context if context is None else context[b]
            expected, weights = literal(module, x[b, :length], own)
            close(pooled[b], expected, tolerance)
            close(attention[b, :, :length], weights, tolerance)
        assert (attention.masked_select(~mask.unsqueeze(1)) == 0).all()


def test_heads_are_the_terms_of_one_bilinear_form():
    module, x = make(), inputs()
    hidden = module.mlp(x).tanh()
    terms = module.context_query(module.context) * module.query(hidden)
    form = module.context_query.weight.T @ module.query.weight  # P Q^T
    close(terms.sum(2), hidden @ form.T @ module.context)


@every_variant
def test_weights_add_up_to_one_in_float32(options):
    module, x = make(torch.float32, **options), inputs(500, dtype=torch.float32)
    mask = padding_mask([500, 77, 1], 500)
    _, attention = module(x, mask, contexts(module, torch.float32))
    assert (attention.sum(2) - 1).abs().max() < 2e-6
    assert (attention.masked_select(~mask.unsqueeze(1)) == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_weights_are_nearly_flat(temperature):
    module = make(temperature=temperature)
    nn.init.normal_(module.query.weight, std=30)  # scores far beyond what tanh lets through
    _, attention = module(inputs(200))
    ratio = attention.amax(2) / attention.amin(2)
    assert ratio.max() <= math.exp(2 / temperature) * (1 + 1e-12)
    assert ratio.max() > math.exp(1 / temperature)


@every_variant
def test_gradients(options):
    module, x = make(**options), inputs(5).requires_grad_()
    mask = padding_mask([5, 3, 0], 5)
    context = contexts(module)
    leaves = [x, *module.parameters()]

    def results(x, *parameters):
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(module, named, (x, mask, context))

    assert torch.autograd.gradcheck(results, leaves)


@every_variant
@pytest.mark.parametrize("junk", [0.0, 1e6, float("nan")])
def test_padding_and_empty_sequences(options, junk):
    """Rows of zeros have scores 0 / 0, which must not reach the gradients of P and Q."""
    module, x, mask = make(**options), inputs(), padding_mask([9, 5, 0])
    mask[0, 2] = False
    context = contexts(module)
    expected = module(x, mask, context)
    other = x.masked_fill(~mask.unsqueeze(2), junk).requires_grad_()
    results = module(other, mask, context)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted)
        assert (actual[2] == 0).all()
    (results[0].square().sum() + results[1].square().sum()).backward()
    assert (other.grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def test_valid_rows_of_zeros_have_finite_gradients():
    module = make(mlp=False)
    module(torch.zeros(2, ROWS, WIDTH, dtype=torch.float64))[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@every_variant
def test_padding_and_the_batch_change_nothing(options):
    module, x, mask = make(**options), inputs(), padding_mask([9, 5, 3])
    context = contexts(module)
    pooled, attention = module(x, mask, context)
    more = module(F.pad(x, (0, 0, 0, 30)), F.pad(mask, (0, 30)), context)
    close(more[0], pooled)
    close(more[1][:, :, :ROWS], attention)
    order = torch.tensor([2, 0, 1])
    other = module(x[order], mask[order], None if context is None else context[order])
    close(other[0], pooled[order])


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("width", "heads", "expected"), [(100, 5, 11200), (100, 16, 13400)])
def test_published_numbers_of_parameters(width, heads, expected):
    assert parameters(LamaPooling(width, heads)) == expected
    bare = LamaPooling(width, heads, context="given", mlp=False)
    assert parameters(bare) == 2 * width * heads
    learned = LamaPooling(width, heads, mlp=False)
    assert parameters(learned) == 2 * width * heads + width
    san = 350 * (width + heads)  # structured self-attention, d_a = 350
    attention = nn.MultiheadAttention(width, 5, bias=False)
    assert expected < min(san, parameters(attention))


def test_published_numbers_of_parameters_of_the_classifier():
    model = LamaClassifier(54000, 5)
    assert parameters(model.gru) == 45600
    assert parameters(model.head) == 259077
    assert parameters(LamaPooling(768, 12)) == 609792
    assert model.head[2].p == 0.4
    assert isinstance(model.head[1], nn.Identity)


def test_initial_parameters():
    module = LamaPooling(100, 16)
    for weight in (module.mlp.weight, module.query.weight, module.context_query.weight):
        assert 0.095 < weight.abs().max() <= 0.1
    assert module.context.std().item() == pytest.approx((2 / 101) ** 0.5, rel=0.3)


def test_diversity_penalty():
    attention = torch.rand(4, HEADS, ROWS, dtype=torch.float64)
    errors = [(a @ a.T - torch.eye(HEADS)).square().sum() for a in attention]
    close(diversity_penalty(attention), sum(errors) / 4)
    assert diversity_penalty(torch.eye(HEADS, ROWS).expand(4, -1, -1)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    module, x = make(torch.float32), inputs(4000, dtype=torch.float32)
    expected = module(x)
    with torch.autocast("cpu", dtype):
        results = module(x)
        results[0].float().square().sum().backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in module.parameters()
    )
    exact = copy.deepcopy(module).double()(x.to(dtype).double())
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert (actual - wanted).norm() < 0.05 * wanted.norm()
    for actual, wanted in zip(module.to(dtype)(x.to(dtype)), exact, strict=True):
        assert actual.dtype == dtype
        assert (actual - wanted).norm() < 0.05 * wanted.norm()


def test_memory_grows_linearly():
    module, peaks = make(torch.float32), []
    for rows in (2048, 4096):
        x = inputs(rows, dtype=torch.float32)
        peaks.append(peak_bytes(lambda x=x: module(x)[0].sum().backward()))
    assert peaks[1] < 2.1 * peaks[0]


def test_compile():
    torch._dynamo.reset()
    module, x, mask = make(), inputs(), padding_mask([9, 5, 0])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    for actual, expected in zip(compiled(x, mask), module(x, mask), strict=True):
        close(actual, expected)


def test_export_with_dynamic_batch_and_length():
    module = make()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("rows")}
    program = torch.export.export(
        module,
        (inputs(), padding_mask([9, 5, 3])),
        dynamic_shapes={"x": dims, "mask": dims},
    )
    x, mask = inputs(7, batch=2), padding_mask([7, 4], 7)
    for actual, expected in zip(program.module()(x, mask), module(x, mask), strict=True):
        close(actual, expected)


def classifier(dtype=torch.float64, **options):
    torch.manual_seed(0)
    sizes = {"width": 5, "hidden": 3, "heads": HEADS, "head_hidden": 4}
    return LamaClassifier(11, 4, **(sizes | options)).to(dtype).eval()


def tokens(batch=3, rows=ROWS):
    torch.manual_seed(1)
    return torch.randint(11, (batch, rows))


@both_contexts
def test_classifier_is_its_parts(context):
    model, x = classifier(context=context, head_activation=True), tokens()
    for b, length in enumerate((9, 5, 1)):
        embedded = model.embedding(x[b : b + 1, :length])
        states, _ = nn.GRU.forward(model.gru, embedded)
        asked = embedded[0].mean(0) if context == "mean" else model.pooling.context
        pooled, attention = literal(model.pooling, states[0], asked)
        expected = model.head[3](F.relu(model.head[0](pooled.flatten())))
        mask = padding_mask([9, 5, 1])
        close(model(x, mask)[b], expected)
        close(model.pool(x, mask)[1][b, :, :length], attention)
        close(model(x[b : b + 1, :length])[0], expected)


@both_contexts
def test_only_valid_tokens_and_their_order_count(context):
    model, x, mask = classifier(context=context), tokens(), padding_mask([9, 5, 0])
    mask[0, [0, 4]] = False
    expected = model(x, mask)
    close(model(x.masked_fill(~mask, 3), mask), expected)
    close(model(F.pad(x, (0, 30), value=2), F.pad(mask, (0, 30))), expected)
    close(model(x[:1, mask[0]])[0], expected[0])
    order = torch.tensor([2, 0, 1])
    close(model(x[order], mask[order]), expected[order])
    pooled, attention = model.pool(x, mask)
    assert (attention.masked_select(~mask.unsqueeze(1)) == 0).all()
    assert (pooled[2] == 0).all()
    model(x, mask).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_classifier_copies():
    model, x, mask = classifier(), tokens(), padding_mask([9, 5, 2])
    loaded = classifier(torch.float64, mlp=True)
    nn.init.normal_(loaded.head[0].weight)
    loaded.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(x, mask), model(x, mask))
    assert model(x[:0], mask[:0]).shape == (0, 4)


def test_any_mixer_can_stand_before_the_pooling():
    """As a `SequenceClassifier` with the pieces of the whole network, but for the head."""
    whole, x, mask = classifier(), tokens(), padding_mask([9, 5, 2])
    model = SequenceClassifier(
        [whole.gru], width=5, length=ROWS, classes=4, vocabulary=11, pooling="lama"
    ).double()
    model.embedding, model.lama = whole.embedding, whole.pooling
    model.head = nn.Identity()
    close(model(x, mask), whole.pool(x, mask)[0].flatten(1))


def test_classifier_compiles_around_its_gru():
    torch._dynamo.reset()
    model, x, mask = classifier(), tokens(), padding_mask([9, 5, 0])
    close(torch.compile(model, backend="aot_eager")(x, mask), model(x, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classifier_under_autocast(dtype):
    model, x, mask = classifier(torch.float32), tokens(), padding_mask([9, 5, 2])
    with torch.autocast("cpu", dtype):
        result = model(x, mask)
        result.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (result - model(x, mask)).norm() < 0.05 * model(x, mask).norm()


def planted(generator):
    """Which of the words 0 .. 3 stands somewhere among 10 to 60 other words?"""
    lengths = torch.randint(10, 61, (64,), generator=generator)
    x = torch.randint(4, 200, (64, 60), generator=generator)
    target = torch.randint(4, (64,), generator=generator)
    place = (torch.rand(64, generator=generator) * lengths).long()
    x[torch.arange(64), place] = target
    return x, padding_mask(lengths.tolist(), 60), target


@pytest.mark.parametrize("context", ["learned", pytest.param("mean", marks=pytest.mark.slow)])
def test_trains(context):
    """Finds the keyword within 200 steps."""
    torch.manual_seed(0)
    sizes = {"width": 32, "hidden": 16, "heads": 4, "head_hidden": 64}
    model = LamaClassifier(200, 4, context=context, head_activation=True, dropout=0, **sizes)
    assert_learns(model, planted)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: LamaPooling(8, 1),
            ValueError,
            "LamaPooling: heads must be at least 2 (got 1)",
        ),
        (lambda: LamaPooling(8, 0), ValueError, "LamaPooling: heads must be at least 1 (got 0)"),
        (lambda: LamaPooling(0, 2), ValueError, "LamaPooling: width must be at least 1 (got 0)"),
        (lambda: LamaPooling(8.0, 2), TypeError, "LamaPooling: width must be an integer (got 8.0)"),
        (
            lambda: LamaPooling(8, 2, context="mean"),
            ValueError,
            "LamaPooling: context must be one of ('learned', 'given') (got 'mean')",
        ),
        (
            lambda: LamaPooling(8, 2, temperature=0),
            ValueError,
            "LamaPooling: temperature must be positive (got 0)",
        ),
        (
            lambda: LamaClassifier(8, 2, context="given"),
            ValueError,
            "LamaClassifier: context must be one of ('learned', 'mean') (got 'given')",
        ),
        (lambda: LamaClassifier(0, 2), ValueError, "LamaClassifier: vocabulary must be at least 1"),
        (lambda: LamaClassifier(8, 2, heads=1), ValueError, "heads must be at least 2 (got 1)"),
    ],
)
def test_construction_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


X, MASK, CONTEXT = torch.zeros(3, ROWS, WIDTH), torch.ones(3, ROWS).bool(), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({}, (X[0],), ValueError, "x must be (B, N, 6) (got shape [9, 6])"),
        ({}, (X[..., 1:],), ValueError, "x must be (B, N, 6) (got shape [3, 9, 5])"),
        ({}, (X[:, :0],), ValueError, "x must have N >= 1 (got N = 0)"),
        ({}, (X.long(),), TypeError, "x must be floating (got torch.int64)"),
        ({}, (X, MASK[:, 1:]), ValueError, "mask must be (B, N) = [3, 9] (got shape [3, 8])"),
        ({}, (X, MASK.int()), TypeError, "mask must be bool (got torch.int32)"),
        ({}, (X, MASK, CONTEXT), ValueError, "context must be None where it is learned"),
        ({"given": 4}, (X, MASK), ValueError, "context must be (B, C) = [3, 4] (got None)"),
        (
            {"given": 4},
            (X, MASK, CONTEXT[0]),
            ValueError,
            "context must be (B, C) = [3, 4] (got shape [4])",
        ),
        (
            {"given": 4},
            (X, MASK, CONTEXT.long()),
            TypeError,
            "context must be floating (got torch.int64)",
        ),
    ],
)
def test_call_errors(options, arguments, error, message):
    given = {"context": "given", "context_width": options["given"]} if options else {}
    with pytest.raises(error, match=re.escape(f"LamaPooling: {message}")):
        make(torch.float32, **given)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3).long(),), ValueError, "x must be tokens (B, N), N >= 1 (got shape [3])"),
        (
            (torch.zeros(3, 0).long(),),
            ValueError,
            "x must be tokens (B, N), N >= 1 (got shape [3, 0",
        ),
        ((torch.zeros(3, 9),), TypeError, "x must be int64 or int32 tokens (got torch.float32)"),
        ((torch.zeros(3, 9).long(), MASK[:2]), ValueError, "mask must be (B, N) = [3, 9]"),
    ],
)
def test_classifier_call_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(f"LamaClassifier: {message}")):
        classifier()(*arguments)
