"""Performer: softmax attention by positive random features (FAVOR+)."""

import math
from typing import Any

import torch
from torch import Tensor

from paramixer._checks import check_size
from paramixer.nn.opponents.heads import HeadedMixer, at_least_float32, attended, zero_padding

EPSILON = 1e-4  # keeps every weight positive


class Performer(HeadedMixer):
    """Attention by random features whose inner products approximate exponentials of scores.

        attend(Q, K, V)_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j)
        phi(x) = exp(Omega x' - |x'|^2 / 2 - c) + 1e-4,    x' = x / d^(1/4)

    The rows of Omega (features, d) are orthogonal in blocks of d, with the lengths of Gaussian
    vectors. c cancels and keeps exp from overflowing: the row's maximum for a query, the maximum
    over all rows for keys. Choromanski et al., ICLR 2021, arXiv 2009.14794 (FAVOR+, not causal).
    Time and memory grow with N features; sums over rows are float32 at least, under autocast too.

    Other arguments, shapes and errors: `HeadedMixer`. Padding is left out after phi, so it may lie
    anywhere.

    Args:
        width: input width.
        length: the longest sequence.
        features: number of features; default d log(d), d the channels of a head, at least d.
        options: `heads`, `bias` and `dropout`.
    """

    directions: Tensor

    def __init__(
        self,
        width: int,
        length: int,
        *,
        features: int | None = None,
        **options: Any,
    ):
        super().__init__(width, length, **options)
        channels = self.width // self.heads
        default = max(channels, int(channels * math.log(channels)))
        self.features = check_size(
            "Performer", "features", default if features is None else features
        )
        self.register_buffer("directions", torch.empty(self.features, channels))
        self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """Draws Omega anew."""
        features, channels = self.directions.shape
        squares = torch.randn(-(-features // channels), channels, channels)
        orthogonal = torch.linalg.qr(squares).Q.mT.flatten(0, 1)[:features]
        lengths = torch.randn(features, channels).norm(dim=1, keepdim=True)
        self.directions.copy_(lengths * orthogonal)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        dtype = value.dtype
        with torch.autocast(query.device.type, enabled=False):
            query, key, value = (at_least_float32(x) for x in (query, key, value))
            queries, keys = self._exponents(query), self._exponents(key)
            highest = keys
            if mask is not None:
                highest = keys.masked_fill(~attended(mask)[:, None, :, None], -torch.inf)
            queries = (queries - queries.amax(3, keepdim=True)).exp() + EPSILON
            keys = (keys - highest.amax((2, 3), keepdim=True)).exp() + EPSILON
            if mask is not None:
                keys = zero_padding(keys, attended(mask)[:, None])
            norm = queries @ keys.sum(2).unsqueeze(3)
            return (queries @ (keys.mT @ value) / norm).to(dtype)

    def _exponents(self, x: Tensor) -> Tensor:
        x = x / x.shape[3] ** 0.25
        return x @ self.directions.to(x.dtype).mT - x.square().sum(3, keepdim=True) / 2

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"{super().extra_repr()}, features={self.features}"
