import copy
import io
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from paramixer import links, reference
from paramixer.nn import Paramixer, PSFAttention
from support import close, padding_mask
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

LENGTH = 12
CUSTOM = [[0, 5, -2], [3, 3, 100], [1, 0, -1]]
VARIANTS = {
    "default": {},
    "cdil": {"protocol": "cdil", "links": 5, "residual": "none"},
    "custom": {"protocol": CUSTOM, "residual": "initial"},
    "widths": {"value_width": 6, "hidden": 7, "factors": 2, "links": 3},
    "heads": {"heads": 4, "hidden": 5},
    "heads-widths": {"heads": 3, "value_width": 6, "bias": False, "residual": "initial"},
}


def make(width=8, length=LENGTH, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Paramixer(width, length, **options).to(dtype)


def inputs(length=LENGTH, batch=3, width=8, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch, length, width, dtype=dtype)


def straight(module, x, source):
    """The published formulas with one small network a factor and one chain a head."""

    def linear(weight, bias, x):
        return F.linear(x, weight, bias)

    def part(tensor, *index):
        return None if tensor is None else tensor[index]

    value = module.value_output(F.gelu(module.value_hidden(x)))
    outputs = []
    for head, initial in enumerate(value.chunk(module.heads, dim=-1)):
        state = initial
        for m, offsets in enumerate(module.offsets):
            rows = slice(m * module.hidden, (m + 1) * module.hidden)
            columns = slice(head * module.links, (head + 1) * module.links)
            inner = linear(
                module.link_hidden.weight[rows], part(module.link_hidden.bias, rows), source
            )
            weight = linear(
                module.link_output.weight[m, columns],
                part(module.link_output.bias, m, columns),
                F.gelu(inner),
            )
            added = {"none": 0, "previous": state, "initial": initial}[module.residual]
            state = reference.mix(weight, state, offsets) + added
        outputs.append(state)
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("length", [LENGTH, 5, 1])
def test_formula_and_gradients(options, length):
    module = make(**options)
    x = inputs(length).requires_grad_()
    source = inputs(length).mul(-0.5).requires_grad_()
    leaves = [x, source, *module.parameters()]
    output, expected = module(x, source=source), straight(module, x, source)
    assert output.shape == (3, length, module.value_width)
    close(output, expected)
    upstream = torch.randn_like(output)
    actual_grads = torch.autograd.grad(output, leaves, upstream)
    for actual, wanted in zip(
        actual_grads, torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        assert actual.any()
        close(actual, wanted)
    close(module(x), straight(module, x, x))


def test_gradcheck():
    module = make(width=3, length=4, heads=3, hidden=2)
    x = inputs(4, batch=1, width=3).requires_grad_()
    mask = padding_mask([3], 4)
    assert torch.autograd.gradcheck(lambda x: module(x, mask), x)
    assert torch.autograd.gradgradcheck(lambda x: module(x, mask), x)


def test_heads_are_separate_chains():
    heads = make(heads=2, hidden=5)
    x = inputs()
    mask = padding_mask([12, 7, 3])
    single = []
    for head in range(2):
        alone = make(value_width=4, hidden=5)
        own = slice(head * alone.links, (head + 1) * alone.links)
        state = {
            name: tensor.unflatten(1, (2, -1))[:, head] if "link_output" in name else tensor
            for name, tensor in heads.state_dict().items()
        }
        for name in ("value_output.weight", "value_output.bias"):
            state[name] = state[name][4 * head : 4 * head + 4]
        alone.load_state_dict(state)
        close(alone.link_weights(x), heads.link_weights(x)[:, head])
        assert alone.link_output.weight.equal(heads.link_output.weight[:, own])
        single.append(alone(x, mask))
    close(heads(x, mask), torch.cat(single, dim=-1))


def test_link_weights():
    module = make(factors=3, links=4)
    assert module.link_weights(inputs()).shape == (3, LENGTH, 3, 4)
    assert make(factors=3, links=4, heads=2).link_weights(inputs()).shape == (3, 2, LENGTH, 3, 4)
    weight = module.link_weights(inputs())
    value = module.value_output(F.gelu(module.value_hidden(inputs())))
    chained = reference.mix_chain(weight, value, module.offsets, "previous")
    close(module(inputs()), chained)


def test_offsets_are_those_of_the_full_length():
    assert make().offsets == links.chord(LENGTH)
    assert make(factors=2, links=3).offsets == links.chord(LENGTH, 2, 3)
    assert make(protocol="cdil").offsets == links.cdil(LENGTH)
    assert make(protocol=CUSTOM).offsets == CUSTOM


def test_parameter_names():
    layers = ("link_hidden", "link_output", "value_hidden", "value_output")
    names = [name for name, _ in make().named_parameters()]
    assert names == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    names = [name for name, _ in make(bias=False).named_parameters()]
    assert names == [f"{layer}.weight" for layer in layers]


def test_initialised_like_separate_linear_layers():
    torch.manual_seed(0)
    module = Paramixer(64, 2**16, hidden=48, heads=4)
    for inner, features in ((module.link_hidden, 64), (module.link_output, 48)):
        bound = features**-0.5
        assert 0.999 * bound < inner.weight.abs().max() <= bound
        assert inner.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert 0.98 * bound < inner.bias.abs().max() <= bound
        assert inner.bias.mean().item() == pytest.approx(0, abs=0.1 * bound)
    separate = nn.Linear(48, 4 * module.links)
    assert separate.weight.shape == module.link_output.weight[0].shape
    assert separate.bias.shape == module.link_output.bias[0].shape


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
@pytest.mark.parametrize("junk", [1e6, float("inf"), float("nan")])
def test_mask(residual, heads, junk):
    module = make(residual=residual, heads=heads)
    x, mask = inputs(), padding_mask([12, 7, 0])
    mask[0, 4] = False
    output = module(x, mask)
    assert (output[~mask] == 0).all()
    assert output[mask].all()
    other = x.masked_fill(~mask.unsqueeze(2), junk)
    assert torch.equal(module(other, mask), output)
    assert torch.equal(module(x, mask, source=other), output)
    module(other.requires_grad_(), mask).sum().backward()
    assert (other.grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def test_mask_of_all_valid_rows():
    module = make()
    assert torch.equal(module(inputs(), torch.ones(3, LENGTH, dtype=torch.bool)), module(inputs()))


def test_mask_against_formula():
    module = make(residual="initial")
    x, mask = inputs(), padding_mask([12, 7, 2])
    weight = module.link_weights(x) * mask[:, :, None, None]
    value = module.value_output(F.gelu(module.value_hidden(x))) * mask.unsqueeze(2)
    close(module(x, mask), reference.mix_chain(weight, value, module.offsets, "initial"))


@pytest.mark.parametrize("shape", [(0, LENGTH), (2, 0), (0, 0)])
def test_empty(shape):
    module = make(heads=2)
    x = torch.randn(*shape, 8, dtype=torch.float64, requires_grad=True)
    output = module(x, torch.ones(shape, dtype=torch.bool))
    assert output.shape == (*shape, 8)
    output.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("heads", [1, 2])
def test_copies_nothing(heads):
    class Copies(TorchDispatchMode):
        sizes = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
                self.sizes += (args[0].numel(),)
            return function(*args, **(kwargs or {}))

    module = make(heads=heads, hidden=5)
    with torch.no_grad(), Copies() as copies:
        module(inputs())
    assert copies.sizes == ()


def test_non_contiguous_input():
    module = make()
    x = inputs().mT.contiguous().mT
    close(module(x), module(x.contiguous()))


def test_dropout_in_training_only():
    module = make(dropout=0.5)
    x = inputs()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    close(module(x), straight(module, x, x))


def test_psf_attention():
    torch.manual_seed(0)
    module = PSFAttention(8, LENGTH, value_width=6, links=4).double()
    same = make(value_width=6, links=4, residual="initial")
    assert isinstance(module, Paramixer)
    assert module.residual == "initial"
    assert torch.equal(module(inputs()), same(inputs()))
    with pytest.raises(TypeError, match="residual"):
        PSFAttention(8, LENGTH, residual="none")


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_copies(options):
    module = make(**options)
    x, mask = inputs(), padding_mask([12, 7, 3])
    expected = module(x, mask)
    loaded = Paramixer(8, LENGTH, **options).double()
    loaded.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(x, mask), expected)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_torchscript(options):
    module = make(**options)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    x, mask = inputs(), padding_mask([12, 7, 3])
    assert torch.equal(scripted(x), module(x))
    assert torch.equal(scripted(x, mask, x * 2), module(x, mask, x * 2))
    short = x[:, :5].clone().requires_grad_()
    (grad,) = torch.autograd.grad(scripted(short).sum(), short)
    close(grad, torch.autograd.grad(module(short).sum(), short)[0])


def test_torchscript_of_psf_attention():
    module = PSFAttention(8, LENGTH).double()
    assert torch.equal(torch.jit.script(module)(inputs()), module(inputs()))


@pytest.mark.parametrize("heads", [1, 2])
def test_compile(heads):
    torch._dynamo.reset()
    module = make(heads=heads)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (3, 4, 5):
        x = inputs(batch=batch).requires_grad_()
        mask = padding_mask([12, 7, 3, 0, 1][:batch])
        output = compiled(x, mask)
        close(output, module(x, mask))
        (grad,) = torch.autograd.grad(output.square().sum(), x)
        close(grad, torch.autograd.grad(module(x, mask).square().sum(), x)[0])


def test_export_with_dynamic_batch_and_length():
    module = make(heads=2)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=LENGTH)
    dims = {0: batch, 1: length}
    program = torch.export.export(
        module,
        (inputs(), padding_mask([12, 7, 3])),
        dynamic_shapes={"x": dims, "mask": dims},
    )
    x, mask = inputs(7, batch=2), padding_mask([7, 4], 7)
    close(program.module()(x, mask), module(x, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    module = make(dtype=torch.float32)
    x, mask = inputs(dtype=torch.float32), padding_mask([12, 7, 3])
    with torch.autocast("cpu", dtype):
        assert module.link_weights(x).dtype == dtype
        output = module(x, mask)
        output.float().sum().backward()
    assert output.dtype == dtype
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in module.parameters())
    exact = module(x, mask)
    assert (output - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_module(dtype):
    module = make(dtype=dtype)
    output = module(inputs(dtype=dtype))
    exact = copy.deepcopy(module).double()(inputs(dtype=dtype).double())
    assert output.dtype == dtype
    assert (output - exact).norm() < 0.05 * exact.norm()


def test_trains():
    torch.manual_seed(0)
    module, head = Paramixer(4, 16, hidden=8), nn.Linear(4, 1)
    x = torch.randn(32, 16, 4)
    target = x[:, :, :1].roll(5, dims=1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(head(module(x)), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_repr():
    text = repr(make(heads=2, residual="initial"))
    assert (
        "width=8, length=12, value_width=8, protocol=chord, factors=4, links=5, hidden=8, "
        "residual=initial, heads=2" in text
    )
    assert "FactorLinear(factors=4, in_features=8, out_features=10, bias=True)" in text
    assert "protocol=custom, factors=3, links=3" in repr(make(protocol=CUSTOM))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1 (got 0)"),
        ({"length": 0}, "length must be at least 1 (got 0)"),
        ({"value_width": 0}, "value_width must be at least 1 (got 0)"),
        ({"hidden": -1}, "hidden must be at least 1 (got -1)"),
        ({"heads": 0}, "heads must be at least 1 (got 0)"),
        ({"heads": 3}, "heads must divide value_width (got heads 3 and value_width 8)"),
        (
            {"residual": "both"},
            "residual must be one of ('none', 'previous', 'initial') (got 'both')",
        ),
        (
            {"protocol": "ring"},
            'protocol must be "chord", "cdil" or lists of offsets (got \'ring\')',
        ),
        ({"protocol": []}, "offsets, 1 to 64 (got 0 with [] offsets)"),
        ({"protocol": [[0, 1], [0]]}, "offsets, 1 to 64 (got 2 with [1, 2] offsets)"),
        ({"protocol": [[]]}, "offsets, 1 to 64 (got 1 with [0] offsets)"),
        (
            {"protocol": [[0, 2**63]]},
            "protocol must hold offsets of at most 64 bits (got 9223372036854775808)",
        ),
        (
            {"protocol": [[0], [-(2**63) - 1]]},
            "protocol must hold offsets of at most 64 bits (got -9223372036854775809)",
        ),
        (
            {"protocol": [[0]], "factors": 1},
            "factors and links must be None for a protocol given as lists of offsets "
            "(got factors 1 and links None)",
        ),
    ],
)
def test_construction_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make(**options)
    assert str(error.value).startswith("Paramixer: ")


def test_construction_errors_of_protocols():
    with pytest.raises(ValueError, match=r"chord: factors must be at least 1 \(got 0\)"):
        make(factors=0)
    with pytest.raises(ValueError, match=r"cdil: links must be odd.* \(got 4\)"):
        make(protocol="cdil", links=4)


@pytest.mark.parametrize("name", ["width", "length", "value_width", "hidden", "heads"])
def test_sizes_are_integers(name):
    with pytest.raises(TypeError, match=rf"Paramixer: {name} must be an integer \(got 8.5\)"):
        make(**{name: 8.5})


@pytest.mark.parametrize("protocol", [[[0, 1.5]], [0, 1], 7])
def test_offsets_are_integers(protocol):
    message = f"Paramixer: protocol must be one list of integers per factor (got {protocol!r})"
    with pytest.raises(TypeError, match=re.escape(message)):
        make(protocol=protocol)


def test_extreme_offsets():
    module = make(protocol=[[0, 2**63 - 1], [-(2**63), 1]])
    x = inputs(7)
    close(module(x), straight(module, x, x))


X, BOOL = torch.zeros(3, LENGTH, 8), torch.ones(3, LENGTH, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[..., :7],), ValueError, "x must be (B, N, 8) (got shape [3, 12, 7])"),
        ((X[0],), ValueError, "x must be (B, N, 8) (got shape [12, 8])"),
        ((X.long(),), TypeError, "x must be floating (got torch.int64)"),
        (
            (torch.zeros(3, 13, 8),),
            ValueError,
            "x must not be longer than length 12 (got N = 13)",
        ),
        (
            (X, None, X[..., :7]),
            ValueError,
            "source must be (B, N, 8) (got shape [3, 12, 7])",
        ),
        ((X, None, X[0]), ValueError, "source must be (B, N, 8) (got shape [12, 8])"),
        ((X, None, X.long()), TypeError, "source must be floating (got torch.int64)"),
        (
            (X, None, X[:, :5]),
            ValueError,
            "source must have the batch and length of x (got shapes [3, 5, 8] and [3, 12, 8])",
        ),
        (
            (X, BOOL[:, 1:]),
            ValueError,
            "mask must be (B, N) = [3, 12] (got shape [3, 11])",
        ),
        ((X, BOOL.float()), TypeError, "mask must be bool (got torch.float32)"),
    ],
)
def test_call_errors(arguments, error, message):
    module = make(dtype=torch.float32)

    def computed(*_):
        raise AssertionError("checked too late")

    for layer in (module.value_hidden, module.link_hidden):
        layer.register_forward_pre_hook(computed)
    with pytest.raises(error, match=re.escape(f"Paramixer: {message}")):
        module(*arguments)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(error, match=re.escape(f"Paramixer: {message}")),
    ):
        module(*arguments)


def test_link_weights_errors():
    module = make()
    with pytest.raises(ValueError, match=r"x must not be longer than length 12 \(got N = 13\)"):
        module.link_weights(inputs(13))
    with pytest.raises(TypeError, match=r"x must be floating \(got torch.int64\)"):
        module.link_weights(inputs().long())


def test_torchscript_errors():
    scripted = torch.jit.script(make())
    x = inputs()
    with pytest.raises(torch.jit.Error, match=r"x must not be longer than length 12 \(got N = 13"):
        scripted(inputs(13))
    with pytest.raises(torch.jit.Error, match="x must be floating"):
        scripted(x.long())
    with pytest.raises(torch.jit.Error, match=r"source must be \(B, N, 8\) \(got shape \["):
        scripted(x, None, x[..., :7])
