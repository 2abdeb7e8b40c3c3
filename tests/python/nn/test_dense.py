import pytest
import torch
import torch.nn.functional as F
from paramixer.nn import (
    ChordMixer,
    LinearAttention,
    Monarch,
    Paramixer,
    PSFAttention,
    SimpleTron,
    dense_map,
    opponents,
)
from support import close, padding_mask

WIDTH, HEADS, ROWS = 6, 2, 9
BETWEEN_LINEAR_LAYERS = {
    "linear": lambda: LinearAttention(WIDTH, HEADS, feature_map="gated"),
    "linear-causal": lambda: LinearAttention(WIDTH, HEADS, causal=True),
    "simpletron": lambda: SimpleTron(WIDTH, HEADS, output=True),
    "monarch": lambda: Monarch(WIDTH, 11, HEADS),
    "softmax": lambda: opponents.SoftmaxAttention(WIDTH, 11, heads=HEADS),
    "linformer": lambda: opponents.Linformer(WIDTH, 11, heads=HEADS, rank=4),
    "nystromformer": lambda: opponents.Nystromformer(WIDTH, 11, heads=HEADS, landmarks=4, kernel=3),
    "local": lambda: opponents.LocalAttention(WIDTH, 11, heads=HEADS, window=2),
}


def make(heads=1, residual="previous"):
    torch.manual_seed(0)
    module = Paramixer(6, 11, value_width=4, heads=heads, residual=residual, hidden=5).double()
    return module, torch.randn(2, 9, 6, dtype=torch.float64)


def values(module, x, mask):
    value = module.value_output(F.gelu(module.value_hidden(x)))
    return value if mask is None else value * mask.unsqueeze(2)


@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_matrix_applied(residual, masked):
    module, x = make(residual=residual)
    mask = torch.arange(9) < torch.tensor([[9], [5]]) if masked else None
    dense = dense_map(module, x, mask=mask)
    assert dense.shape == (2, 9, 9)
    torch.testing.assert_close(dense @ values(module, x, mask), module(x, mask))
    if mask is not None:
        valid = mask.unsqueeze(2) & mask.unsqueeze(1)
        assert (dense[~valid] == 0).all()


def test_heads():
    module, x = make(heads=2)
    dense = dense_map(module, x)
    assert dense.shape == (2, 2, 9, 9)
    value = values(module, x, None).unflatten(2, (2, 2)).transpose(1, 2)
    torch.testing.assert_close((dense @ value).transpose(1, 2).flatten(2), module(x))


@pytest.mark.parametrize("name", BETWEEN_LINEAR_LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_is_what_stands_between_two_linear_layers(name, masked):
    module = BETWEEN_LINEAR_LAYERS[name]().double()
    x = torch.randn(2, ROWS, WIDTH, dtype=torch.float64)
    mask = padding_mask([ROWS, 5]) if masked else None
    dense = dense_map(module, x, mask=mask)
    assert dense.shape == (2, HEADS, ROWS, ROWS)
    layer = getattr(module, "value", None)
    value = module.projection(x)[..., 2 * WIDTH :] if layer is None else layer(x)
    mixed = (dense @ value.unflatten(2, (HEADS, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    expected = module(x, mask)
    result = module.output(mixed)
    if mask is None:
        close(result, expected)
    else:
        close(result[mask], expected[mask])
        valid = mask[:, None, :, None] & mask[:, None, None, :]
        assert (dense[~valid.expand_as(dense)] == 0).all()


def test_channels_of_a_state_space():
    module = opponents.S4D(WIDTH, 11, states=4).double()
    x, mask = torch.randn(2, ROWS, WIDTH, dtype=torch.float64), padding_mask([ROWS, 5])
    dense = dense_map(module, x, mask=mask)
    assert dense.shape == (2, WIDTH, ROWS, ROWS)
    mixed = (dense @ x.mT.unsqueeze(3)).squeeze(3).mT
    close(F.glu(module.output(F.gelu(mixed)))[mask], module(x, mask)[mask])


@pytest.mark.parametrize("residual", ["none", "previous", "initial"])
def test_without_residual_is_the_product_of_the_factors(residual):
    module, x = make(residual=residual)
    weight = module.link_weights(x)
    expected = torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    for m, offsets in enumerate(module.offsets):
        factor = torch.zeros(2, 9, 9, dtype=torch.float64)
        for i in range(9):
            for k, offset in enumerate(offsets):
                factor[:, i, (i + offset) % 9] += weight[:, i, m, k]
        expected = factor @ expected
    torch.testing.assert_close(dense_map(module, x, residual=False), expected)


def test_differentiable():
    module = PSFAttention(4, 5)
    dense_map(module, torch.randn(1, 5, 4)).square().sum().backward()
    assert module.link_hidden.weight.grad.any()


def test_errors():
    module, x = make()
    rule = "dense_map: module must apply one matrix to all its values"
    for wrong in (torch.nn.Linear(2, 2), ChordMixer(6, 4)):
        with pytest.raises(TypeError, match=rule):
            dense_map(wrong, x)
    with pytest.raises(ValueError, match=r"x must not be longer than length 11 \(got N = 12\)"):
        dense_map(module, torch.zeros(1, 12, 6))
    with pytest.raises(TypeError, match="mask must be bool"):
        dense_map(module, x, mask=torch.ones(2, 9))
