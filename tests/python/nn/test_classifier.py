import copy
import io
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from paramixer.nn import Paramixer, PSFAttention, SequenceClassifier
from support import close, padding_mask
from torch import nn

WIDTH, LENGTH, CLASSES, VOCABULARY = 8, 10, 3, 7
TOKENS = {"vocabulary": VOCABULARY}
POOLINGS = ("flatten", "mean", "first", "valid", "lama")
VARIANTS = {
    "tokens": TOKENS | {"positions": "learned"},
    "published": TOKENS | {"links_from": "embedding", "pooling": "flatten"},
    "values": {"features": 2, "positions": "sinusoidal", "norm": True, "pooling": "valid"},
    "lama": TOKENS | {"pooling": "lama", "pooling_options": {"heads": 3}},
    "hidden": TOKENS | {"head_hidden": 5, "pooling": "first", "norm": True},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
SCRIPTED = VARIANTS.keys() - {"lama"}
every_scripted_variant = pytest.mark.parametrize("variant", sorted(SCRIPTED))


def make(mixers=2, **options):
    torch.manual_seed(0)
    stack = [Paramixer(WIDTH, LENGTH, hidden=6) for _ in range(mixers)]
    sizes = {"width": WIDTH, "length": LENGTH, "classes": CLASSES}
    return SequenceClassifier(stack, **(sizes | options)).double()


def inputs(options, batch=4, length=LENGTH):
    generator = torch.Generator().manual_seed(1)
    if "features" in options:
        shape = (batch, length, options["features"])
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def test_plain_stack_with_links_from_embedding():
    model = make(links_from="embedding", positions="learned", pooling="flatten", **TOKENS)
    tokens = inputs(TOKENS)
    embedded = model.embedding.weight[tokens] + model.positions.weight
    state = model.mixers[0](embedded)
    state = model.mixers[1](state, source=embedded)
    close(model(tokens), model.head(state.flatten(1)))
    close(model.embed(tokens), embedded)
    close(model.encode(tokens), state)


def test_links_from_layer():
    model = make(pooling="mean", **TOKENS)
    tokens = inputs(TOKENS)
    state = model.mixers[1](model.mixers[0](model.embedding(tokens)))
    close(model(tokens), model.head(state.mean(1)))


@pytest.mark.parametrize("links_from", ["layer", "embedding"])
def test_norm(links_from):
    model = make(norm=True, links_from=links_from, features=2)
    x = inputs({"features": 2})
    state = embedded = F.linear(x, model.embedding.weight, model.embedding.bias)
    for mixer, norm in zip(model.mixers, model.norms, strict=True):
        normed = norm(state)
        state = state + mixer(normed, source=embedded if links_from == "embedding" else normed)
    close(model(x), model.head(model.final_norm(state).mean(1)))


def test_poolings():
    tokens, mask = inputs(TOKENS), padding_mask([10, 6, 1, 0])
    for pooling in POOLINGS:
        model = make(pooling=pooling, **TOKENS)
        for given in (None, mask):
            rows = model.encode(tokens, given)
            expected = {
                "flatten": lambda r: r.flatten(1),
                "mean": lambda r: r.sum(1) / LENGTH,
                "first": lambda r: r[:, 0],
                "lama": lambda r, m=given, model=model: model.lama(r, m)[0].flatten(1),
                "valid": lambda r, m=given: (
                    r.mean(1) if m is None else r.sum(1) / torch.tensor([[10], [6], [1], [1]])
                ),
            }[pooling](rows)
            close(model(tokens, given), model.head(expected))


def test_head():
    model = make(head_hidden=5, **TOKENS)
    pooled = model.encode(inputs(TOKENS)).mean(1)
    close(model(inputs(TOKENS)), model.head[2](F.gelu(model.head[0](pooled))))
    assert [name for name, _ in model.head.named_parameters()] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]


@pytest.mark.parametrize("width", [8, 7, 1])
def test_sinusoidal_positions(width):
    model = SequenceClassifier(
        [nn.Identity()], width=width, length=9, classes=2, vocabulary=3, positions="sinusoidal"
    )
    nn.init.zeros_(model.embedding.weight)
    added = model.embed(torch.zeros(1, 9, dtype=torch.long))[0]
    for i in range(9):
        for c in range(width):
            angle = i / 10000 ** ((c - c % 2) / width)
            wave = math.cos(angle) if c % 2 else math.sin(angle)
            assert added[i, c].item() == pytest.approx(wave, abs=1e-5)
    assert "positions.table" not in model.state_dict()


def test_value_width_of_the_last_mixer():
    mixer = PSFAttention(WIDTH, LENGTH, value_width=5)
    for pooling, features in (("mean", 5), ("flatten", 5 * LENGTH)):
        model = SequenceClassifier(
            [mixer], width=WIDTH, length=LENGTH, classes=2, features=3, pooling=pooling
        )
        assert model.head.in_features == features
        assert model(torch.randn(2, LENGTH, 3)).shape == (2, 2)


@every_variant
def test_padding_content_does_not_matter(options):
    model = make(**options)
    x, mask = inputs(options), padding_mask([10, 6, 1, 3])
    expected = model(x, mask)
    other = x.clone()
    other[~mask] = 5 if "vocabulary" in options else float("nan")
    assert torch.equal(model(other, mask), expected)
    assert torch.equal(model(x, torch.ones_like(mask)), model(x))


@every_variant
def test_gradients_reach_every_parameter(options):
    model = make(**options)
    F.cross_entropy(model(inputs(options)), torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name


def test_padding_idx():
    model = make(padding_idx=2, **TOKENS)
    assert not model.embedding.weight[2].any()
    model(inputs(TOKENS)).sum().backward()
    assert not model.embedding.weight.grad[2].any()


def test_shorter_sequences():
    for pooling in [pooling for pooling in POOLINGS if pooling != "flatten"]:
        model = make(pooling=pooling, positions="learned", **TOKENS)
        assert model(inputs(TOKENS, length=4)).shape == (4, CLASSES)


@pytest.mark.parametrize("option", ["embedding_dropout", "dropout"])
def test_dropouts(option):
    model = make(**TOKENS, **{option: 0.5})
    tokens = inputs(TOKENS)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


class Scale(nn.Module):
    """A mixer without `source` and `value_width`."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return x * self.scale


def test_any_mixer():
    model = SequenceClassifier([Scale()], width=4, length=5, classes=2, features=1)
    x = torch.randn(2, 5, 1)
    assert model(x).shape == (2, 2)
    assert torch.equal(torch.jit.script(model)(x), model(x))


@every_scripted_variant
def test_copies_and_saved_forms(variant):
    options = VARIANTS[variant]
    model = make(**options)
    x, mask = inputs(options), padding_mask([10, 6, 1, 3])
    expected = model(x, mask)
    loaded = make(**options)
    for parameter in loaded.parameters():
        parameter.data.zero_()
    loaded.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded)
    for other in (*copies, torch.jit.load(buffer)):
        assert torch.equal(other(x, mask), expected)
        close(other(x), model(x))


@pytest.mark.parametrize("variant", ["published", "values"])
def test_compile_and_export(variant):
    torch._dynamo.reset()
    options = VARIANTS[variant]
    model = make(**options)
    x, mask = inputs(options), padding_mask([10, 6, 1, 3])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(x, mask), model(x, mask))
    dims = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (x, mask), dynamic_shapes={"x": dims, "mask": dims})
    close(program.module()(x[:2], mask[:2]), model(x[:2], mask[:2]))


@every_variant
def test_autocast(options):
    model = make(**options).float()
    x = inputs(options)
    x = x.float() if x.is_floating_point() else x
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    assert (output - model(x)).norm() < 0.1 * model(x).norm()


def test_repr():
    text = repr(make(norm=True, links_from="embedding", **TOKENS))
    assert "width=8, length=10, pooling=mean, links_from=embedding, norm=True" in text


ONE_OF = "exactly one of vocabulary and features must be given"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": 0}, "mixers must hold at least one module (got 0)"),
        ({"width": 0}, "width must be at least 1 (got 0)"),
        ({"length": 0}, "length must be at least 1 (got 0)"),
        ({"classes": 0}, "classes must be at least 1 (got 0)"),
        ({"head_hidden": 0}, "head_hidden must be at least 1 (got 0)"),
        ({"vocabulary": 0}, "vocabulary must be at least 1 (got 0)"),
        ({"vocabulary": None, "features": 0}, "features must be at least 1 (got 0)"),
        (
            {"positions": "rotary"},
            "positions must be one of ('none', 'learned', 'sinusoidal') (got 'rotary')",
        ),
        (
            {"pooling": "max"},
            f"pooling must be one of {POOLINGS} (got 'max')",
        ),
        (
            {"pooling_options": {"heads": 3}},
            "pooling_options must be None without pooling lama (got {'heads': 3} and pooling mean)",
        ),
        ({"links_from": "x"}, "links_from must be one of ('layer', 'embedding') (got 'x')"),
        ({"vocabulary": None}, f"{ONE_OF} (got vocabulary None and features None)"),
        ({"features": 2}, f"{ONE_OF} (got vocabulary 7 and features 2)"),
        (
            {"vocabulary": None, "features": 2, "padding_idx": 0},
            "padding_idx must be None without vocabulary (got 0)",
        ),
        ({"padding_idx": 7}, "padding_idx must be one of the 7 tokens (got 7)"),
    ],
)
def test_construction_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(f"SequenceClassifier: {message}")):
        make(**(TOKENS | options))


@pytest.mark.parametrize(
    "name", ["width", "length", "classes", "head_hidden", "vocabulary", "padding_idx", "features"]
)
def test_sizes_are_integers(name):
    options = {"vocabulary": None} if name == "features" else TOKENS
    message = f"SequenceClassifier: {name} must be an integer (got 2.5)"
    with pytest.raises(TypeError, match=re.escape(message)):
        make(**(options | {name: 2.5}))


def stack(*mixers, **options):
    return SequenceClassifier(mixers, width=8, length=5, classes=2, features=1, **options)


@pytest.mark.parametrize(
    ("mixers", "options", "message"),
    [
        (
            [Paramixer(8, 6), Paramixer(8, 4)],
            {},
            "mixers[1] must take sequences of length 5 (got length 4)",
        ),
        (
            [Paramixer(7, 5)],
            {},
            "mixers[0] must have the width of its input (got width 7 and input of width 8)",
        ),
        (
            [Paramixer(8, 5, value_width=4), Paramixer(8, 5)],
            {},
            "mixers[1] must have the width of its input (got width 8 and input of width 4)",
        ),
        (
            [Paramixer(8, 5, value_width=4), Paramixer(4, 5)],
            {"links_from": "embedding"},
            "mixers[1] must have the width of its input (got width 4 and input of width 4 and 8)",
        ),
        (
            [Paramixer(8, 5), Paramixer(8, 5, value_width=4)],
            {"norm": True},
            "mixers must have results of the width of their input for norm "
            "(got widths [8, 4] and 8)",
        ),
    ],
)
def test_mixers_that_do_not_fit(mixers, options, message):
    with pytest.raises(ValueError, match=re.escape(f"SequenceClassifier: {message}")):
        stack(*mixers, **options)


def test_narrowing_stack():
    model = stack(Paramixer(8, 6, value_width=4), nn.Identity(), Paramixer(4, 5, value_width=3))
    assert model.head.in_features == 3
    assert stack(Paramixer(8, 5, value_width=4), Scale()).head.in_features == 4


INPUTS = {"tokens": inputs(TOKENS), "values": inputs({"features": 2})}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda tokens, _: tokens(INPUTS["tokens"].unsqueeze(2)),
            ValueError,
            "x must be tokens (B, N) (got shape [4, 10, 1])",
        ),
        (
            lambda tokens, _: tokens(INPUTS["tokens"].double()),
            TypeError,
            "x must be int64 or int32 tokens (got torch.float64)",
        ),
        (
            lambda _, values: values(INPUTS["values"][..., 0]),
            ValueError,
            "x must be values (B, N, 2) (got shape [4, 10])",
        ),
        (
            lambda _, values: values(INPUTS["values"][..., :1]),
            ValueError,
            "x must be values (B, N, 2) (got shape [4, 10, 1])",
        ),
        (
            lambda _, values: values(INPUTS["values"].long()),
            TypeError,
            "x must be floating (got torch.int64)",
        ),
        (
            lambda tokens, _: tokens(inputs(TOKENS, length=11)),
            ValueError,
            "x must not be longer than length 10 (got N = 11)",
        ),
        (
            lambda tokens, _: tokens(INPUTS["tokens"], torch.ones(4, 9, dtype=torch.bool)),
            ValueError,
            "mask must be (B, N) = [4, 10] (got shape [4, 9])",
        ),
        (
            lambda tokens, _: tokens(INPUTS["tokens"], INPUTS["tokens"]),
            TypeError,
            "mask must be bool (got torch.int64)",
        ),
        (
            lambda tokens, _: tokens.encode(INPUTS["tokens"][0]),
            ValueError,
            "x must be tokens (B, N) (got shape [10])",
        ),
    ],
)
def test_call_errors(call, error, message):
    models = make(**TOKENS), make(features=2)
    with pytest.raises(error, match=re.escape(f"SequenceClassifier: {message}")):
        call(*models)


@every_scripted_variant
@pytest.mark.parametrize("script", [False, True])
def test_lengths_that_cannot_be_pooled(variant, script):
    options = VARIANTS[variant]
    model = make(**options)
    called = torch.jit.script(model) if script else model
    rule = "N >= 1"
    if model.pooling == "flatten":
        rule = "N = length = 10"
        with pytest.raises(
            torch.jit.Error if script else ValueError, match=r"for pooling flatten \(got N = 9\)"
        ):
            called(inputs(options, length=9))
    message = f"x must have {rule} for pooling {model.pooling} (got N = 0)"
    with pytest.raises(torch.jit.Error if script else ValueError, match=re.escape(message)):
        called(inputs(options, length=0))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_batch(pooling):
    model = make(pooling=pooling, **TOKENS)
    assert model(inputs(TOKENS, batch=0)).shape == (0, CLASSES)


def test_32_bit_tokens():
    model = make(**TOKENS)
    assert torch.equal(model(INPUTS["tokens"].int()), model(INPUTS["tokens"]))


def test_export_with_dynamic_length():
    model = make(pooling="valid", **TOKENS)
    x, mask = inputs(TOKENS), padding_mask([10, 6, 1, 3])
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LENGTH)}
    program = torch.export.export(model, (x, mask), dynamic_shapes={"x": dims, "mask": dims})
    short = x[:2, :6], mask[:2, :6]
    close(program.module()(*short), model(*short))
