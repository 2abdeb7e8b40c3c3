"""Local attention: softmax attention within a sliding window."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paramixer._checks import check_size
from paramixer.nn.opponents.heads import HeadedMixer


class LocalAttention(HeadedMixer):
    """Attention of row i to the rows j with |i - j| <= w: softmax attention with those scores only.

    The window of Longformer (Beltagy et al., arXiv 2004.05150), without its global tokens. Blocks
    of w queries meet the 3 w keys around them, so time and memory grow with N w. Rows further apart
    than w do not meet in one layer.

    Other arguments, shapes and errors: `HeadedMixer`. Padded keys have no weight but keep their
    positions, so a result equals that of the sequence without its padding where that comes last.

    Args:
        width: input width.
        length: the longest sequence.
        window: the number of rows w to either side.
        options: `heads`, `bias` and `dropout`.
    """

    def __init__(self, width: int, length: int, *, window: int = 64, **options: Any):
        super().__init__(width, length, **options)
        self.window = check_size("LocalAttention", "window", window)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        batch, _, rows, _ = query.shape
        queries = self._blocks(query, 0)
        keys, values = self._blocks(key, self.window), self._blocks(value, self.window)
        valid = query.new_ones(batch, rows, dtype=torch.bool) if mask is None else mask
        valid = self._blocks(valid[:, None, :, None], self.window)[..., 0].unsqueeze(2)
        # Queries are the middle third of the rows that their block's keys are.
        i = torch.arange(self.window, 2 * self.window, device=query.device).unsqueeze(1)
        j = torch.arange(3 * self.window, device=query.device)
        # Where i itself is padding its result is not used, but no softmax may be empty.
        seen = ((i - j).abs() <= self.window) & valid | (i == j)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        mixed = mixed.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
        # Not a slice: whether that is contiguous depends on N, which exported programs leave open.
        return mixed.index_select(2, torch.arange(rows, device=query.device))

    def _blocks(self, x: Tensor, around: int) -> Tensor:
        """Each block of w rows of x (B, H, N, d) with its neighbours, zero beyond either end.

        (B blocks, H, w + 2 around, d): fused attention kernels take four dimensions.
        """
        rest = self.window * (x.shape[2] // self.window + 1) - x.shape[2]
        blocks = F.pad(x, (0, 0, around, around + rest))
        blocks = blocks.unfold(2, self.window + 2 * around, self.window)
        return blocks.permute(0, 2, 1, 4, 3).flatten(0, 1)

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"{super().extra_repr()}, window={self.window}"
