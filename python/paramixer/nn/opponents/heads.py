"""What the attention mixers share: queries, keys and values of every head, the output, padding."""

from typing import Any

import torch
from torch import Tensor, nn

from paramixer._checks import check_heads, check_rows, check_sequence, check_size
from paramixer.nn._rows import zero_padding


class HeadedMixer(nn.Module):
    """Attention of H heads between two linear layers; a subclass says which, in `attend`.

        [Q_h, K_h, V_h]_h = x W + b,    Y = [attend(Q_h, K_h, V_h)]_h W' + b',    h = 1 .. H

    Args:
        width: input width E, also that of the result.
        length: the longest sequence.
        heads: number of heads H; each has d = E / H channels.
        bias: whether the two linear layers have a bias.
        dropout: probability of dropout on the values, as in `Paramixer`.

    Shapes:
        x (B, N, E), floating, N <= length; mask (B, N), bool, True where valid; result (B, N, E).
        With a mask, rows of the result at padding are zero and what padding holds changes nothing.
        Valid rows are those of the sequence without its padding; where this needs the padding to
        come last, the subclass says so. Fused attention kernels have first derivatives only;
        `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` gives all.

    Raises:
        ValueError: at construction when a size is out of range or heads do not divide the width; in
            the call when x or mask has the wrong shape or N > length.
        TypeError: at construction when a size is not an integer; in the call when x is not floating
            or mask is not bool.
    """

    def __init__(
        self, width: int, length: int, *, heads: int = 1, bias: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        name = type(self).__name__
        self.width = check_size(name, "width", width)
        self.length = check_size(name, "length", length)
        self.heads = check_size(name, "heads", heads)
        check_heads(name, self.heads, self.width)
        self.projection = nn.Linear(self.width, 3 * self.width, bias=bias)
        self.output = nn.Linear(self.width, self.width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Mixes values (B, H, N, d) by queries and keys (B, H, N, d), all finite; mask (B, N).

        Rows of the result at padding may hold anything finite.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E)."""
        x = padded_input(self, x, mask)
        if x.numel() == 0:
            return self.output(x)
        query, key, value = self._project(x)
        mixed = self.attend(query, key, self.dropout(value), mask)
        return zero_padding(self.output(mixed.transpose(1, 2).flatten(2)), mask)

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The N x N matrix of every head that `forward` applies to the values, for pictures.

        Args:
            x: (B, N, E), N >= 1.
            mask: (B, N), bool, True where valid; rows at padding may hold anything finite.

        Returns:
            (B, H, N, N).

        Raises:
            ValueError: a tensor has the wrong shape.
            TypeError: x is not floating or mask is not bool.
        """
        query, key, value = self._project(padded_input(self, x, mask))
        identity = torch.eye(x.shape[1], dtype=value.dtype, device=value.device)
        return self.attend(query, key, identity.expand(*value.shape[:2], -1, -1), mask)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, H, N, d)."""
        heads = self.projection(x).unflatten(2, (3, self.heads, self.width // self.heads))
        return heads.permute(2, 0, 3, 1, 4).unbind()

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"width={self.width}, length={self.length}, heads={self.heads}"


def padded_input(mixer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """The input x of a mixer, checked, with zeros at padding: no NaN there spreads by a product."""
    name = type(mixer).__name__
    check_rows(name, "x", x, mixer.width)
    check_sequence(name, x, mask, mixer.length)
    return zero_padding(x, mask)


def attended(mask: Tensor) -> Tensor:
    """The mask (B, N) of keys; all of them where none is valid, so that no softmax is empty.

    (The rows of such a sequence are zeroed in the end.)
    """
    return mask | ~mask.any(1, keepdim=True)
