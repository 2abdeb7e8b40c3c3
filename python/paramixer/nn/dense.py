"""The dense matrix that a mixer stands for, for pictures and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramixer._checks import check_rows, check_sequence
from paramixer.nn.linear_attention import LinearAttention, SimpleTron
from paramixer.nn.monarch import Monarch
from paramixer.nn.opponents.heads import HeadedMixer
from paramixer.nn.opponents.s4d import S4D
from paramixer.nn.paramixer import Paramixer
from paramixer.ops import mix_chain


def dense_map(
    module: nn.Module, x: Tensor, *, residual: bool = True, mask: Tensor | None = None
) -> Tensor:
    """The matrix A that `module` applies to its values when it is given x.

    A mixer computes values from its input row by row, multiplies them from the left by A, and
    treats the rows of the result one by one again. A is

    - of `Paramixer` and `PSFAttention` V_M = A V_0, the product of the factors with the residual;
    - of `LinearAttention`, `SimpleTron` and the attention of `opponents` what weighs the values of
      a head (of Nyströmformer with its convolution);
    - of `Monarch` a head's matrix, and of `S4D` that of a channel: the same for every x.

    `ChordMixer` and the blocks of `opponents` are not linear in any values and have no such matrix.

    Args:
        module: the mixer.
        x: what it is given, or for `Paramixer` what the links are computed from, (B, N, E).
        residual: whether A includes the residual of a `Paramixer`; without it A is the product
            S_M .. S_1.
        mask: (B, N), bool, True where valid; rows and columns of A at padding are zero.

    Returns:
        A, (B, N, N), and (B, H, N, N) with several heads; of S4D (B, E, N, N). Takes memory for
        it: meant for small N.

    Raises:
        TypeError: `module` is no such mixer, x is not floating, or mask is not bool.
        ValueError: x or mask has the wrong shape.
    """
    name = type(module).__name__
    if not isinstance(module, (Paramixer, LinearAttention, SimpleTron, HeadedMixer, Monarch, S4D)):
        raise TypeError(f"dense_map: module must apply one matrix to all its values (got {name})")
    check_rows(name, "x", x, module.width)
    check_sequence(name, x, mask, getattr(module, "length", x.shape[1]))
    dense = _matrices(module, x, residual, mask)
    if mask is not None:
        valid = mask[:, None, :, None] & mask[:, None, None, :]
        dense = dense.masked_fill(~valid, 0)
    return dense.squeeze(1)


def _matrices(module: nn.Module, x: Tensor, residual: bool, mask: Tensor | None) -> Tensor:
    """(B, H, N, N), with anything in rows and columns at padding."""
    batch, rows, _ = x.shape
    if isinstance(module, Paramixer):
        weight = module.head_weights(x, mask)
        identity = _identity(rows, weight).expand(*weight.shape[:2], -1, -1)
        return mix_chain(weight, identity, module.offsets, module.residual if residual else "none")
    if isinstance(module, (LinearAttention, SimpleTron, HeadedMixer)):
        return module.attention(x, mask)
    if isinstance(module, Monarch):
        return module.matrix()[:, :rows, :rows].expand(batch, -1, -1, -1)
    assert isinstance(module, S4D)
    # Sequence j is an impulse at row j of every channel.
    impulses = _identity(rows, x).unsqueeze(2).expand(-1, -1, module.width)
    return module._convolve(impulses).permute(2, 1, 0).expand(batch, -1, -1, -1)


def _identity(rows: int, like: Tensor) -> Tensor:
    return torch.eye(rows, dtype=like.dtype, device=like.device)
