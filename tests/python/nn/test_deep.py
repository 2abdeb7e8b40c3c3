import pytest
import torch
from paramixer import nn
from torch.nn import functional


def test_gated_feed_forward_is_its_formula():
    layer = nn.GatedFeedForward(6, 5).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    gate, value = layer.gate_and_value(x).split(5, dim=-1)
    torch.testing.assert_close(layer(x), layer.output(functional.gelu(gate) * value))


def test_channel_dropout_takes_the_same_channels_of_all_rows():
    dropout, x = nn.ChannelDropout(0.25), torch.rand(50, 7, 40) + 1
    kept = dropout(x) != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropout(x).sum() / x.sum(), torch.tensor(1.0), atol=0.05, rtol=0)
    assert dropout(x[:, :0]).shape == (50, 0, 40)
    assert torch.equal(torch.jit.script(dropout.eval())(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_channel_dropout_checks_its_probability(p):
    with pytest.raises(ValueError, match=f"ChannelDropout: p must be between 0 and 1 .got {p}"):
        nn.ChannelDropout(p)


def test_dropout_is_for_training():
    layer = nn.GatedFeedForward(6, 50, dropout=0.5)
    x = torch.randn(2, 3, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_deep_classifier_ignores_what_padding_holds():
    stack = nn.with_feed_forward([nn.Paramixer(8, 12), nn.Paramixer(8, 12)], 8, 16)
    assert [type(one).__name__ for one in stack] == ["Paramixer", "GatedFeedForward"] * 2
    model = nn.SequenceClassifier(
        stack, width=8, length=12, classes=3, features=2, norm=True, pooling="valid"
    )
    x = torch.randn(4, 12, 2)
    mask = torch.arange(12) < torch.tensor([[12], [1], [7], [3]])
    other = torch.where(mask.unsqueeze(2), x, torch.randn_like(x))
    torch.testing.assert_close(model(x, mask), model(other, mask))


@pytest.mark.parametrize("name", ["width", "hidden"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"GatedFeedForward: {name} must be at least 1"):
        nn.GatedFeedForward(**({"width": 4, "hidden": 4} | {name: 0}))
