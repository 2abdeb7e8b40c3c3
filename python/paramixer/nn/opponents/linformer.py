"""Linformer: softmax attention to linear combinations of the keys and values."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_size
from paramixer.nn._rows import zero_padding
from paramixer.nn.opponents.heads import HeadedMixer


class Linformer(HeadedMixer):
    """Attention to r combinations of all rows: attend(Q, K, V) = softmax(Q (E K)^T / sqrt(d)) F V.

    E and F, (r, length), are parameters, the same for all heads; N rows meet their first N columns.
    Wang et al., arXiv 2006.04768 (its sharing "headwise"). Time and memory grow with N r. As the
    weights belong to positions, nothing learned about one position holds for another.

    Other arguments, shapes and errors: `HeadedMixer`. Keys and values at padding are zero before E
    and F, so a result equals that of the sequence without its padding where that comes last.

    Args:
        width: input width.
        length: the longest sequence.
        rank: number of combinations r.
        options: `heads`, `bias` and `dropout`.
    """

    def __init__(self, width: int, length: int, *, rank: int = 64, **options: Any):
        super().__init__(width, length, **options)
        self.rank = check_size("Linformer", "rank", rank)
        # E^T and F^T, drawn like linear layers from `length` to `rank`.
        bound = 1 / math.sqrt(self.length)
        self.key_rows = nn.Parameter(torch.empty(self.length, self.rank).uniform_(-bound, bound))
        self.value_rows = nn.Parameter(torch.empty(self.length, self.rank).uniform_(-bound, bound))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        if mask is not None:
            key, value = zero_padding(key, mask[:, None]), zero_padding(value, mask[:, None])
        keys = self.key_rows[: key.shape[2]].T @ key
        values = self.value_rows[: key.shape[2]].T @ value
        return F.scaled_dot_product_attention(query, keys, values)

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"{super().extra_repr()}, rank={self.rank}"
