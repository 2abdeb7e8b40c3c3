"""The dense matrix that a mixer stands for, for pictures and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from paramixer.nn.paramixer import Paramixer
from paramixer.ops import mix_chain


def dense_map(
    module: Paramixer, x: Tensor, *, residual: bool = True, mask: Tensor | None = None
) -> Tensor:
    """The matrix A that `module` applies to its values, V_M = A V_0, when its links come from x.

    Args:
        module: the mixer.
        x: what the links are computed from, (B, N, E).
        residual: whether A includes the module's residual; without it A is the product S_M .. S_1.
        mask: (B, N), bool, True where valid; rows and columns of A at padding are zero.

    Returns:
        A, (B, N, N), and (B, H, N, N) with several heads. Takes memory for it: meant for small N.

    Raises:
        TypeError: `module` is not a Paramixer, x is not floating, or mask is not bool.
        ValueError: x or mask has the wrong shape.
    """
    if not isinstance(module, Paramixer):
        raise TypeError(f"dense_map: module must be a Paramixer (got {type(module).__name__})")
    weight = module.head_weights(x, mask)
    identity = torch.eye(x.shape[1], dtype=weight.dtype, device=weight.device)
    identity = identity.expand(weight.shape[0], weight.shape[1], -1, -1)
    if mask is not None:
        identity = identity.masked_fill(~mask[:, None, :, None], 0)
    dense = mix_chain(weight, identity, module.offsets, module.residual if residual else "none")
    return dense.squeeze(1) if module.heads == 1 else dense
