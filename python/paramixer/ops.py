"""The operators: products with sparse factors, closed under differentiation.

A factor is an N x N matrix with K non-zeros ("links") a row, at fixed offsets o_0 .. o_{K-1} on a
ring of N positions; a weight tensor (*, N, K) holds them. Sparse Factorization (Khalitov et al.,
Neural Networks 2022) and Paramixer (Yu et al., CVPR 2022) multiply about log2 N such factors;
:func:`mix_chain` is that whole product.

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


def mix_chain(
    weight: Tensor,
    value: Tensor,
    offsets: list[int] | list[list[int]],
    residual: str = "none",
    save: str = "boundaries",
) -> Tensor:
    """Multiplies values by a chain of M sparse factors, each with a residual if wanted.

    ``V_0 = V;  V_m = S_m(W_m) V_{m-1} + R_m  for m = 1 .. M;  the result is V_M``

    where ``S_m(W_m)`` is the factor of :func:`mix` with the weights ``W[.., m, :]`` and the m-th
    offsets. ``R_m`` is 0 for residual "none", ``V_{m-1}`` for "previous" (Paramixer, CVPR 2022) and
    ``V_0`` for "initial" (PSF-Attn, Neural Networks 2022). Inference saves nothing for backward.

    On a GPU, forward in bfloat16 and float16, and what backward computes again of it, merges
    factors of CDIL into bands for tensor cores where that is expected to be faster
    (:func:`paramixer.info.plan` shows it). Bands multiply by zeros too, so a NaN or infinity in a
    value can make NaN of rows of its tile and channel that no link leads to; and products of the
    weights of two or three factors are rounded to the dtype, in float16 to infinity from 65520 on.
    PARAMIXER_CUDA_BANDS=off in the environment, which is read once, turns bands off.

    Args:
        weight: (*, N, M, K), the link weights of every position and factor, M >= 1.
        value: (*, N, D). Batch dimensions of weight and value broadcast as in ``torch.matmul``.
        offsets: M lists of K integers of any sign and size, 1 <= K <= 64; or the same M K integers
            in one list, one factor after the other. Links that coincide modulo N add up.
        residual: "none", "previous" or "initial".
        save: what training keeps besides the weight: with "boundaries" at most three tensors of the
            value's size, with "input" the value alone. The rest is computed again in backward.

    Returns:
        (*, N, D), in the layout of ``value`` where it has its shape, else contiguous.

    Raises:
        ValueError: shapes that do not fit each other or the offsets, an unknown residual or save,
            tensors on different devices.
        TypeError: a dtype other than float64, float32, bfloat16, float16, or two different ones.
        NotImplementedError: a device without kernels.
    """
    if torch.jit.is_scripting():
        flat = _scripted_offsets(offsets)
    else:
        flat = _flat_offsets(weight, offsets)
    return torch.ops.paramixer.mix_chain(weight, value, flat, residual, save)


def rotate_tracks(value: Tensor, shifts: list[int], lengths: Tensor | None = None) -> Tensor:
    """Rotates tracks of channels along the sequence, each by its own shift.

    The D channels are cut into T tracks of D / T neighbours, t = c // (D / T), and every sequence
    is a ring of its own length L; what lies behind it is padding:

    ``Y[i, c] = V[(i + o_t) mod L, c]  for i < L,  0 for L <= i < N``

    It is the mixing of ChordMixer (Khalitov et al., ICLR 2023, arXiv 2206.05852), a sparse factor
    without weights, in one copy. Its gradient is the rotation by -o_t; padding is neither read nor
    gets a gradient. Autocast leaves the dtype as it is.

    Args:
        value: (*, N, D), T dividing D.
        shifts: T integers, 1 <= T <= 64, of any sign and size but for -2^63.
        lengths: (*), int64, on the device of ``value``: the length L of every sequence,
            0 <= L <= N; default N for all. CUDA kernels take lengths outside of that range as the
            nearer end of it, since looking would have to wait for the device.

    Returns:
        (*, N, D), in the layout of ``value``.

    Raises:
        ValueError: no or too many shifts, channels that they do not divide, lengths of the wrong
            shape or on another device, or, on the CPU, out of range.
        TypeError: a dtype other than float64, float32, bfloat16, float16; lengths not int64.
        NotImplementedError: a device without kernels.
    """
    return torch.ops.paramixer.rotate_tracks(value, shifts, lengths)


def _scripted_offsets(offsets: Any) -> list[int]:
    """The offsets of all factors in one list, in TorchScript."""
    flat: list[int] = []
    if torch.jit.isinstance(offsets, list[int]):
        flat = offsets
    elif torch.jit.isinstance(offsets, list[list[int]]):
        for factor in offsets:
            flat += factor
    return flat


def _flat_offsets(weight: Tensor, offsets: Any) -> list[int]:
    """The offsets of all factors in one list."""
    if not any(isinstance(factor, list | tuple) for factor in offsets):
        return list(offsets)
    counts = [len(factor) for factor in offsets]
    if weight.dim() >= 3 and counts != [weight.shape[-1]] * weight.shape[-2]:
        raise ValueError(
            "mix_chain: offsets must hold M lists of K integers for weight (*, N, M, K) "
            f"(got lists of {counts} for shape {list(weight.shape)})"
        )
    return [offset for factor in offsets for offset in factor]


# How many dimensions of each tensor stand before and after its batch dimensions, and those of the
# results: states (P, *, N, D) have their boundaries in front.
_MATRIX, _CHAIN, _STATES = (0, 2), (0, 3), (1, 2)
_LAYOUTS = {
    "mix": ((_MATRIX, _MATRIX), (_MATRIX,)),
    "mix_transpose": ((_MATRIX, _MATRIX), (_MATRIX,)),
    "link_dot": ((_MATRIX, _MATRIX), (_MATRIX,)),
    "mix_backward": ((_MATRIX, _MATRIX, _MATRIX), (_MATRIX, _MATRIX)),
    "mix_chain": ((_CHAIN, _MATRIX), (_MATRIX,)),
    "mix_chain_forward": ((_CHAIN, _MATRIX), (_MATRIX, _STATES)),
    "mix_chain_backward": ((_MATRIX, _CHAIN, _MATRIX, _STATES), (_CHAIN, _MATRIX)),
}


def _register_vmap(name: str) -> None:
    """Makes the mapped dimension the first batch dimension, before equal numbers of others."""
    operator: Callable[..., Tensor | tuple[Tensor, ...]] = getattr(torch.ops.paramixer, name)
    operands, results = _LAYOUTS[name]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        tensors, others = args[: len(operands)], args[len(operands) :]
        dims = in_dims[: len(operands)]
        # The batch dimensions each tensor has for the function under vmap; broadcasting aligns
        # them from the right.
        ranks = [
            tensor.dim() - (dim is not None) - before - after
            for tensor, dim, (before, after) in zip(tensors, dims, operands, strict=True)
        ]
        batched = []
        for tensor, dim, (before, _), rank in zip(tensors, dims, operands, ranks, strict=True):
            front = tensor.unsqueeze(before) if dim is None else tensor.movedim(dim, before)
            padding = (1,) * (max(ranks) - rank)
            shape = front.shape
            batched.append(front.reshape(shape[: before + 1] + padding + shape[before + 1 :]))
        if len(operands) > 2:  # a gradient and states have the batch of weight and value together
            batched = [
                tensor.expand(*tensor.shape[:before], info.batch_size, *tensor.shape[before + 1 :])
                for tensor, (before, _) in zip(batched, operands, strict=True)
            ]
        result = operator(*batched, *others)
        if isinstance(result, Tensor):
            return result, 0
        return result, tuple(before for before, _ in results)

    torch.library.register_vmap(f"paramixer::{name}", rule)


for _name in _LAYOUTS:
    _register_vmap(_name)


def _rotate_tracks_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """Makes the mapped dimension the first batch dimension of value and, if given, lengths."""
    value, shifts, lengths = (*args, None)[:3]
    value_dim, _, lengths_dim = (*in_dims, None)[:3]

    def in_front(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.expand(info.batch_size, *tensor.shape)
        return tensor.movedim(dim, 0)

    if lengths is not None:
        lengths = in_front(lengths, lengths_dim)
    return torch.ops.paramixer.rotate_tracks(in_front(value, value_dim), shifts, lengths), 0


torch.library.register_vmap("paramixer::rotate_tracks", _rotate_tracks_vmap)
