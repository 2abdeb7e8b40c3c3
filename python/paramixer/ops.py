"""The operators: products with one sparse factor, closed under differentiation.

A factor is an N x N matrix with K non-zeros ("links") a row, at fixed offsets o_0 .. o_{K-1} on a
ring of N positions; a weight tensor (*, N, K) holds them. Sparse Factorization (Khalitov et al.,
Neural Networks 2022) and Paramixer (Yu et al., CVPR 2022) multiply about log2 N such factors.

All operators run on CPU and CUDA in float64, float32, bfloat16 and float16 (the 16-bit types are
summed in float32 and rounded once), take tensors of any strides, are bitwise reproducible from run
to run and for any number of threads, and have derivatives of every order in backward and forward
mode, under ``torch.func``, ``torch.compile``, ``torch.export`` and autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mix(weight: Tensor, value: Tensor, offsets: list[int]) -> Tensor:
    """Multiplies values by a sparse factor.

    ``Y[i, c] = sum_k W[i, k] V[(i + o_k) mod N, c]``

    Args:
        weight: (*, N, K), the link weights of every position.
        value: (*, N, D). Batch dimensions of weight and value broadcast as in ``torch.matmul``.
        offsets: K integers of any sign and size, 1 <= K <= 64. Links that coincide modulo N add up.

    Returns:
        (*, N, D), in the layout of ``value`` where it has its shape, else contiguous.

    Raises:
        ValueError: shapes that do not fit each other or the offsets, tensors on different devices.
        TypeError: a dtype other than float64, float32, bfloat16, float16, or two different ones.
        NotImplementedError: a device without kernels.
    """
    return torch.ops.paramixer.mix(weight, value, offsets)


def mix_transpose(weight: Tensor, value: Tensor, offsets: list[int]) -> Tensor:
    """Multiplies values by the transpose of a sparse factor.

    ``X[j, c] = sum_k W[(j - o_k) mod N, k] V[(j - o_k) mod N, c]``

    Args:
        weight: (*, N, K), the link weights of every position of the factor that is transposed.
        value: (*, N, D). Batch dimensions of weight and value broadcast as in ``torch.matmul``.
        offsets: K integers of any sign and size, 1 <= K <= 64. Links that coincide modulo N add up.

    Returns:
        (*, N, D), in the layout of ``value`` where it has its shape, else contiguous.

    Raises:
        ValueError: shapes that do not fit each other or the offsets, tensors on different devices.
        TypeError: a dtype other than float64, float32, bfloat16, float16, or two different ones.
        NotImplementedError: a device without kernels.
    """
    return torch.ops.paramixer.mix_transpose(weight, value, offsets)


def link_dot(grad: Tensor, value: Tensor, offsets: list[int]) -> Tensor:
    """Takes the inner products of rows along the links: the gradient of ``mix`` by its weight.

    ``A[i, k] = sum_c G[i, c] V[(i + o_k) mod N, c]``

    Args:
        grad: (*, N, D).
        value: (*, N, D). Batch dimensions of grad and value broadcast as in ``torch.matmul``.
        offsets: K integers of any sign and size, 1 <= K <= 64.

    Returns:
        (*, N, K), contiguous; zeros for D = 0.

    Raises:
        ValueError: shapes that do not fit each other, no or too many offsets, different devices.
        TypeError: a dtype other than float64, float32, bfloat16, float16, or two different ones.
        NotImplementedError: a device without kernels.
    """
    return torch.ops.paramixer.link_dot(grad, value, offsets)


def link_weights(
    x: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    output_weight: Tensor,
    output_bias: Tensor | None,
) -> Tensor:
    """Computes the links of M factors from data: one small network Linear-GELU-Linear a factor.

    ``W[.., m, :] = output_weight[m] gelu(H_m x[..] + hidden_bias_m) + output_bias[m]`` with
    ``H_m = hidden_weight[m h : (m + 1) h]`` and the exact GELU, a Phi(a) (Paramixer, CVPR 2022,
    arXiv 2204.10670). On the CPU the M h hidden activations of a row never leave the caches; the
    gradient computes them anew from x, which is all that is saved. There float16 and bfloat16 are
    computed in float32 throughout and the result is rounded once.

    Args:
        x: (*, E), the data of every position.
        hidden_weight: (M h, E), the first layers, one below the other.
        hidden_bias: (M h), or None.
        output_weight: (M, Q, h), the second layers; Q is K links for each of the heads.
        output_bias: (M, Q), or None.

    Returns:
        (*, M, Q), contiguous.

    Raises:
        ValueError: shapes that do not fit each other, tensors on different devices.
        TypeError: a dtype other than float64, float32, bfloat16, float16, or two different ones.
        NotImplementedError: a device without kernels.
    """
    return torch.ops.paramixer.link_weights(
        x, hidden_weight, hidden_bias, output_weight, output_bias
    )


def _register_vmap(name: str) -> None:
    """Makes the mapped dimension a leading batch dimension, in front of equal numbers of others."""
    operator: Callable[..., Tensor | tuple[Tensor, ...]] = getattr(torch.ops.paramixer, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        *tensors, offsets = args
        dims = in_dims[: len(tensors)]
        # The rank each tensor has for the function under vmap; broadcasting aligns from the right.
        logical = [t.dim() - (d is not None) for t, d in zip(tensors, dims, strict=True)]
        rank = max(logical)
        batched = []
        for tensor, dim, own in zip(tensors, dims, logical, strict=True):
            front = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
            padding = (1,) * (rank - own)
            batched.append(front.reshape(front.shape[:1] + padding + front.shape[1:]))
        if name == "mix_backward":  # its grad has the batch dimensions of weight and value together
            for index in (0, 1):
                shape = batched[index].shape[1:]
                batched[index] = batched[index].expand(info.batch_size, *shape)
        result = operator(*batched, offsets)
        return result, 0 if isinstance(result, Tensor) else (0, 0)

    torch.library.register_vmap(f"paramixer::{name}", rule)


for _name in ("mix", "mix_transpose", "link_dot", "mix_backward"):
    _register_vmap(_name)
