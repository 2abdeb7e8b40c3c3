"""Monarch matrices: two block-diagonal factors with a permutation between them.

Rows of an N x N matrix, N = m b, are pairs (l, j) and columns pairs (k, i), with l, k < m and
j, i < b, the second index running fastest. A Monarch matrix is

    M[(l, j), (k, i)] = L_j[l, k] R_k[j, i],

m blocks R_k of b x b and b blocks L_j of m x m: N (m + b) numbers, 2 N^1.5 for m = b. Dao et al.,
"Monarch" (ICML 2022, arXiv 2204.00595). `inner` is R, (m, b, b), and `outer` is L, (b, m, m).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_heads, check_rows, check_sequence, check_size
from paramixer.nn._rows import zero_padding


class Monarch(nn.Module):
    """A mixer whose N x N matrix is a trained Monarch matrix, the same for every input.

    Values (a linear layer) of each head are multiplied by that head's matrix in two batches of
    dense products, and a linear layer follows. Sequences shorter than `length` use the first rows
    and columns, at the cost of all. Dao et al. (ICML 2022, arXiv 2204.00595).

    Args:
        width: width E of the input and of the result.
        length: the longest sequence. Blocks have b = ceil(sqrt(length)) rows, and there are
            m = ceil(length / b) of them: the matrix itself has m b >= length rows.
        heads: number of heads H, each with a matrix of its own and E / H of the channels.
        bias: whether the linear layers have a bias.

    Attributes:
        inner: R of every head, (H, m, b, b).
        outer: L of every head, (H, b, m, m).

    Shapes:
        x (B, N, E), N <= length; mask (B, N), bool, True where valid; result (B, N, E), zero at
        padding. What padding holds and how much there is of it changes no valid row.

    Raises:
        ValueError: at construction when an argument is out of range or heads do not divide width;
            in the call when x or mask has the wrong shape or N > length.
        TypeError: at construction when a size is not an integer; in the call when x is not
            floating or mask is not bool.
    """

    def __init__(self, width: int, length: int, heads: int = 1, *, bias: bool = True):
        super().__init__()
        self.width = check_size("Monarch", "width", width)
        self.length = check_size("Monarch", "length", length)
        self.heads = check_size("Monarch", "heads", heads)
        check_heads("Monarch", self.heads, self.width)
        self.block = math.isqrt(self.length - 1) + 1
        blocks = -(-self.length // self.block)
        self.value = nn.Linear(self.width, self.width, bias=bias)
        self.inner = nn.Parameter(torch.empty(self.heads, blocks, self.block, self.block))
        self.outer = nn.Parameter(torch.empty(self.heads, self.block, blocks, blocks))
        self.output = nn.Linear(self.width, self.width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the factors anew, their blocks as `nn.Linear` draws its weight."""
        for factor in (self.inner, self.outer):
            bound = factor.shape[-1] ** -0.5
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E)."""
        check_rows("Monarch", "x", x, self.width)
        check_sequence("Monarch", x, mask, self.length)
        blocks = self.inner.shape[1]
        rows = blocks * self.block
        value = zero_padding(self.value(zero_padding(x, mask)), mask)
        # Rows are added and taken away such that a program exported with N = m b takes any N.
        value = F.pad(value, (0, 0, 0, rows))[:, :rows]
        value = value.unflatten(2, (self.heads, -1)).unflatten(1, (blocks, self.block))
        value = torch.einsum("hkji,bkihd->bkjhd", self.inner, value)
        value = torch.einsum("hjlk,bkjhd->bljhd", self.outer, value)
        kept = torch.arange(x.shape[1], device=x.device)
        mixed = value.flatten(3).flatten(1, 2).index_select(1, kept)
        return zero_padding(self.output(mixed), mask)

    def matrix(self) -> Tensor:
        """The matrix of every head that `forward` applies to the values, (H, length, length)."""
        dense = monarch_matrix(self.inner, self.outer)
        return dense[:, : self.length, : self.length]

    @torch.no_grad()
    def project(self, matrix: Tensor) -> None:
        """Sets the factors to the closest ones to a matrix, see `project_monarch`.

        Args:
            matrix: (length, length) for all heads or (H, length, length). For m b > length rows
                and columns of zeros are added.

        Raises:
            ValueError: the matrix has the wrong shape.
        """
        sizes = (self.length, self.length)
        if matrix.shape not in (sizes, (self.heads, *sizes)):
            raise ValueError(
                f"Monarch: matrix must be {list(sizes)} or {[self.heads, *sizes]} "
                f"(got shape {list(matrix.shape)})"
            )
        more = self.block * self.inner.shape[1] - self.length
        inner, outer = project_monarch(F.pad(matrix, (0, more, 0, more)), self.block)
        self.inner.copy_(inner)
        self.outer.copy_(outer)

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return (
            f"width={self.width}, length={self.length}, heads={self.heads}, block={self.block}, "
            f"blocks={self.inner.shape[1]}"
        )


def project_monarch(matrix: Tensor, block: int | None = None) -> tuple[Tensor, Tensor]:
    """The Monarch matrix closest to a given one in the Frobenius norm, in closed form.

    The entries at fixed (j, k) form an m x b slice that is of rank one in a Monarch matrix: every
    slice is cut to its leading singular term.

    Args:
        matrix: (*, N, N), floating or complex.
        block: b, a divisor of N; default the largest one up to sqrt(N).

    Returns:
        inner (*, m, b, b) and outer (*, b, m, m), of which `monarch_matrix` makes the matrix.

    Raises:
        ValueError: the matrix is not square or block does not divide N.
    """
    left, values, right = torch.linalg.svd(monarch_slices(matrix, block), full_matrices=False)
    root = values[..., :1].sqrt()
    outer = (left[..., 0] * root).mT  # (*, j, k, l) to (*, j, l, k)
    inner = (right[..., 0, :] * root).transpose(-3, -2)  # (*, j, k, i) to (*, k, j, i)
    return inner, outer


def monarch_matrix(inner: Tensor, outer: Tensor) -> Tensor:
    """The Monarch matrix (*, N, N) of its factors inner (*, m, b, b) and outer (*, b, m, m)."""
    slices = outer.mT.unsqueeze(-1) * inner.transpose(-3, -2).unsqueeze(-2)
    return from_monarch_slices(slices)


def monarch_slices(matrix: Tensor, block: int | None = None) -> Tensor:
    """Cuts (*, N, N) into slices (*, b, m, m, b) at [j, k, l, i].

    Args:
        matrix: (*, N, N).
        block: b, a divisor of N; default the largest one up to sqrt(N).

    Raises:
        ValueError: the matrix is not square or block does not divide N.
    """
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(
            f"project_monarch: matrix must be (*, N, N) with N >= 1 (got shape "
            f"{list(matrix.shape)})"
        )
    length = matrix.shape[-1]
    if block is None:
        block = max(b for b in range(1, math.isqrt(length) + 1) if length % b == 0)
    elif check_size("project_monarch", "block", block) > length or length % block != 0:
        raise ValueError(f"project_monarch: block must divide N = {length} (got {block})")
    pairs = (length // block, block)
    rows = matrix.unflatten(-1, pairs).unflatten(-3, pairs)  # [l, j, k, i]
    return rows.transpose(-4, -3).transpose(-3, -2)


def from_monarch_slices(slices: Tensor) -> Tensor:
    """The matrix (*, N, N) that `monarch_slices` cuts into these (*, b, m, m, b)."""
    return slices.transpose(-3, -2).transpose(-4, -3).flatten(-2).flatten(-3, -2)
