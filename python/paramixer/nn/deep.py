"""The deep recipe: any mixers in turn with gated feed-forward layers, all residual."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramixer._checks import check_size


class ChannelDropout(nn.Module):
    """Dropout of whole channels: one draw for all rows of a sequence.

    In training a channel is zero with probability p and otherwise scaled by 1 / (1 - p). (On a CPU,
    drawing for every element takes about as long as everything else in a layer.)

    Args:
        p: probability, 0 <= p <= 1.

    Shapes:
        x (.., N, E), floating; result likewise.

    Raises:
        ValueError: at construction when p is no probability.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"ChannelDropout: p must be between 0 and 1 (got {p})")
        self.p = float(p)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """X (.., N, E) to (.., N, E)."""
        if not self.training or self.p == 0:
            return x
        return x * functional.dropout(torch.ones_like(x[..., :1, :]), self.p)


class GatedFeedForward(nn.Module):
    """Every row for itself: W_3 (GELU(W_1 x) * W_2 x), a mixer that does not mix.

    Shazeer, arXiv 2002.05202 ("GEGLU").

    Args:
        width: of input and result, E.
        hidden: of the gated layer, h.
        dropout: probability with which a channel of the gated layer is dropped.

    Shapes:
        x (B, N, E); mask is not needed and only there because mixers have one; result (B, N, E).

    Raises:
        ValueError: at construction when a size is below 1 or dropout is no probability.
        TypeError: at construction when a size is not an integer.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.width = check_size("GatedFeedForward", "width", width)
        hidden = check_size("GatedFeedForward", "hidden", hidden)
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.dropout = ChannelDropout(dropout)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """X (B, N, E) to (B, N, E)."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.output(self.dropout(functional.gelu(gate) * value))


def with_feed_forward(
    mixers: Iterable[nn.Module], width: int, hidden: int, dropout: float = 0.0
) -> list[nn.Module]:
    """Every mixer followed by a feed-forward layer of its own.

    `SequenceClassifier(with_feed_forward(..), norm=True, pooling="valid", ..)` is the deep form:
    x = x + mixer(LayerNorm(x)), then x = x + feed_forward(LayerNorm(x)), as often as there are
    mixers.

    Args:
        mixers: called as mixer(x, mask), results of their input's width.
        width: E.
        hidden: of the feed-forward layers.
        dropout: of the feed-forward layers.
    """
    return [
        module for mixer in mixers for module in (mixer, GatedFeedForward(width, hidden, dropout))
    ]
