"""The operators in plain PyTorch: the oracle that every kernel is tested against.

Written to be read, not to be fast: one `torch.roll` per link. Any floating dtype, device and
strides; differentiable to any order. float16 and bfloat16 are accumulated in float32 and rounded
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paramixer._checks import check_choice

RESIDUALS = ("none", "previous", "initial")


def mix(weight: Tensor, value: Tensor, offsets: Sequence[int]) -> Tensor:
    """Y[i, c] = sum_k W[i, k] V[(i + o_k) mod N, c].

    Args:
        weight: W, (*, N, K).
        value: V, (*, N, D), of the same dtype; batch dimensions broadcast as in `torch.matmul`.
        offsets: K integers of any sign and size.

    Returns:
        Y, (*, N, D), in the dtype of `value`.

    Raises:
        ValueError: shapes or the number of offsets do not fit.
        TypeError: the dtypes differ.
    """
    _check_weight("mix", weight, value, offsets)
    return _mix(_accumulator(weight), _accumulator(value), offsets).to(value.dtype)


def mix_transpose(weight: Tensor, value: Tensor, offsets: Sequence[int]) -> Tensor:
    """X[j, c] = sum_k W[(j - o_k) mod N, k] V[(j - o_k) mod N, c].

    Args:
        weight: W, (*, N, K).
        value: V, (*, N, D), of the same dtype; batch dimensions broadcast as in `torch.matmul`.
        offsets: K integers of any sign and size.

    Returns:
        X, (*, N, D), in the dtype of `value`.

    Raises:
        ValueError: shapes or the number of offsets do not fit.
        TypeError: the dtypes differ.
    """
    _check_weight("mix_transpose", weight, value, offsets)
    w, v = _accumulator(weight), _accumulator(value)
    terms = [_shift(w[..., k, None] * v, -offset) for k, offset in enumerate(offsets)]
    return _sum(terms).to(value.dtype)


def link_dot(grad: Tensor, value: Tensor, offsets: Sequence[int]) -> Tensor:
    """A[i, k] = sum_c G[i, c] V[(i + o_k) mod N, c].

    Args:
        grad: G, (*, N, D).
        value: V, (*, N, D), of the same dtype; batch dimensions broadcast as in `torch.matmul`.
        offsets: K integers of any sign and size.

    Returns:
        A, (*, N, K), in the dtype of `value`; zeros when D = 0.

    Raises:
        ValueError: shapes do not fit or there are no offsets.
        TypeError: the dtypes differ.
    """
    _check("link_dot", "grad", grad, value, offsets)
    if grad.shape[-1] != value.shape[-1]:
        raise ValueError(
            "link_dot: grad and value must have the same number of channels D in dimension -1 "
            f"{_got_shapes(grad, value)}"
        )
    g, v = _accumulator(grad), _accumulator(value)
    dots = [(g * _shift(v, offset)).sum(-1) for offset in offsets]
    return torch.stack(dots, dim=-1).to(value.dtype)


def mix_chain(
    weight: Tensor, value: Tensor, offsets: Sequence[Sequence[int]], residual: str = "none"
) -> Tensor:
    """V_0 = V; V_m = S_m(W_m) V_{m-1} + R_m for m = 1 .. M; the result is V_M.

    R_m is 0 for residual "none", V_{m-1} for "previous" and V_0 for "initial". 16-bit operands are
    accumulated in float32 over the whole chain and rounded once, at its end.

    Args:
        weight: W, (*, N, M, K).
        value: V, (*, N, D), of the same dtype; batch dimensions broadcast as in `torch.matmul`.
        offsets: M lists of K integers.
        residual: "none", "previous" or "initial".

    Returns:
        V_M, (*, N, D), in the dtype of `value`.

    Raises:
        ValueError: shapes, the number of offsets or the residual do not fit.
        TypeError: the dtypes differ.
    """
    check_choice("mix_chain", "residual", residual, RESIDUALS)
    if weight.dim() < 3 or weight.shape[-2] != len(offsets):
        raise ValueError(
            f"mix_chain: weight must be (*, N, M, K) with M = {len(offsets)} factors "
            f"(got shape {list(weight.shape)})"
        )
    for factor, links in zip(weight.unbind(-2), offsets, strict=True):
        _check_weight("mix_chain", factor, value, links)
    w, initial = _accumulator(weight), _accumulator(value)
    state = initial
    for factor, links in zip(w.unbind(-2), offsets, strict=True):
        mixed = _mix(factor, state, links)
        if residual == "previous":
            mixed = mixed + state
        elif residual == "initial":
            mixed = mixed + initial
        state = mixed
    return state.to(value.dtype)


def link_weights(
    x: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    output_weight: Tensor,
    output_bias: Tensor | None,
) -> Tensor:
    """W[.., m, :] = output_weight[m] gelu(H_m x[..] + hidden_bias_m) + output_bias[m].

    H_m is hidden_weight[m h : (m + 1) h]; the GELU is the exact one. 16-bit operands are computed
    in float32 and rounded once.

    Args:
        x: (*, E).
        hidden_weight: (M h, E).
        hidden_bias: (M h), or None.
        output_weight: (M, Q, h).
        output_bias: (M, Q), or None.

    Returns:
        W, (*, M, Q), in the dtype of `x`.
    """
    inner = F.linear(_accumulator(x), _accumulator(hidden_weight))
    if hidden_bias is not None:
        inner = inner + _accumulator(hidden_bias)
    factors, _, hidden = output_weight.shape
    active = F.gelu(inner).unflatten(-1, (factors, hidden))
    links = torch.einsum("...mh,mqh->...mq", active, _accumulator(output_weight))
    if output_bias is not None:
        links = links + _accumulator(output_bias)
    return links.to(x.dtype)


def rotate_tracks(value: Tensor, shifts: Sequence[int], lengths: Tensor | None = None) -> Tensor:
    """Y[i, c] = V[(i + o_t) mod L, c] for i < L, 0 for L <= i < N, where t = c // (D / T).

    Args:
        value: V, (*, N, D).
        shifts: T integers o_t of any sign and size, T dividing D.
        lengths: (*), the length L of every sequence, 0 <= L <= N; default N for all.

    Returns:
        Y, (*, N, D), in the dtype of `value`.

    Raises:
        ValueError: shapes, lengths or the number of shifts do not fit.
    """
    if len(shifts) < 1:
        raise ValueError(f"rotate_tracks: shifts must hold at least one track (got {len(shifts)})")
    if value.dim() < 2:
        raise ValueError(
            "rotate_tracks: value must have at least two dimensions "
            f"(got shape {list(value.shape)})"
        )
    if value.shape[-1] % len(shifts) != 0:
        raise ValueError(
            "rotate_tracks: value must have channels D in dimension -1 that divide into one track "
            f"per shift (got shape {list(value.shape)} and {len(shifts)} shifts)"
        )
    if lengths is None:
        width = value.shape[-1] // len(shifts)
        tracks = [value[..., t * width : (t + 1) * width] for t in range(len(shifts))]
        return torch.cat([_shift(x, o) for x, o in zip(tracks, shifts, strict=True)], dim=-1)
    if lengths.shape != value.shape[:-2]:
        raise ValueError(
            "rotate_tracks: lengths must have the batch dimensions of value, "
            f"{list(value.shape[:-2])} (got shape {list(lengths.shape)})"
        )
    wrong = [length for length in lengths.flatten().tolist() if not 0 <= length <= value.shape[-2]]
    if wrong:
        raise ValueError(
            f"rotate_tracks: lengths must be at least 0 and at most N = {value.shape[-2]} "
            f"(got {wrong[0]})"
        )
    if value.numel() == 0:
        return value.clone()
    sequences = zip(value.reshape(-1, *value.shape[-2:]), lengths.flatten().tolist(), strict=True)
    padded = [F.pad(rotate_tracks(x[:n], shifts), (0, 0, 0, len(x) - n)) for x, n in sequences]
    return torch.stack(padded).view(value.shape)


def _mix(weight: Tensor, value: Tensor, offsets: Sequence[int]) -> Tensor:
    return _sum([weight[..., k, None] * _shift(value, o) for k, o in enumerate(offsets)])


def _shift(x: Tensor, offset: int) -> Tensor:
    """x[(i + offset) mod N] along the ring, the last dimension but one."""
    return torch.roll(x, -(offset % max(x.shape[-2], 1)), dims=-2)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _accumulator(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_weight(name: str, weight: Tensor, value: Tensor, offsets: Sequence[int]) -> None:
    _check(name, "weight", weight, value, offsets)
    if weight.shape[-1] != len(offsets):
        raise ValueError(
            f"{name}: weight must have one column per offset (got shape {list(weight.shape)} and "
            f"{len(offsets)} offsets)"
        )


def _check(name: str, first: str, x: Tensor, value: Tensor, offsets: Sequence[int]) -> None:
    if len(offsets) < 1:
        raise ValueError(f"{name}: offsets must hold at least one link (got {len(offsets)})")
    for argument, tensor in ((first, x), ("value", value)):
        if tensor.dim() < 2:
            raise ValueError(
                f"{name}: {argument} must have at least two dimensions "
                f"(got shape {list(tensor.shape)})"
            )
    if x.dtype != value.dtype:
        raise TypeError(
            f"{name}: {first} and value must have one dtype (got {x.dtype} and {value.dtype})"
        )
    if x.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"{name}: {first} and value must have the same length N in dimension -2 "
            f"{_got_shapes(x, value)}"
        )
    batch = zip(reversed(x.shape[:-2]), reversed(value.shape[:-2]), strict=False)
    if any(size != other and 1 not in (size, other) for size, other in batch):
        raise ValueError(
            f"{name}: batch dimensions of {first} and value must broadcast {_got_shapes(x, value)}"
        )


def _got_shapes(x: Tensor, value: Tensor) -> str:
    return f"(got shapes {list(x.shape)} and {list(value.shape)})"
