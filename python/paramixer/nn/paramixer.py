"""Paramixer and PSF-Attn: mixing by a product of sparse factors computed from the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paramixer import links as protocols
from paramixer._checks import (
    check_choice,
    check_heads,
    check_offsets,
    check_rows,
    check_sequence,
    check_size,
)
from paramixer.nn._rows import zero_padding
from paramixer.ops import mix_chain
from paramixer.reference import RESIDUALS


class FactorLinear(nn.Module):
    """M independent linear layers, one a factor: y[m] = x[m] weight[m]^T + bias[m].

    Each `weight[m]`, `bias[m]` has the layout and the initial distribution of an `nn.Linear`.

    Args:
        factors: number of layers M.
        in_features: input width of each.
        out_features: output width of each.
        bias: whether there is a bias.
    """

    def __init__(self, factors: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(factors, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(factors, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(M, R, in_features) to (M, R, out_features)."""
        weight = self.weight.transpose(1, 2)
        bias = self.bias
        if bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight)

    def extra_repr(self) -> str:
        """What `print` shows."""
        factors, out_features, in_features = self.weight.shape
        return (
            f"factors={factors}, in_features={in_features}, out_features={out_features}, "
            f"bias={self.bias is not None}"
        )


class Paramixer(nn.Module):
    """A mixer whose N x N matrix is a product of M sparse factors computed from the data.

    With links W = f(source), one small network f_m = Linear-GELU-Linear a factor, and values
    V_0 = g(x), g = Linear-GELU-Linear, the result is V_M of

        V_m[i] = sum_k W[i, m, k] V_{m-1}[(i + o_mk) mod N] + R_m[i],   m = 1 .. M

    with R_m = 0 (residual "none"), V_{m-1} ("previous") or V_0 ("initial"). There is no softmax and
    no scaling. Paramixer: CVPR 2022, arXiv 2204.10670; residual "initial" is PSF-Attn: Neural
    Networks 152 (2022), arXiv 2109.08184.

    Args:
        width: input width E.
        length: the longest sequence. The offsets are those of this length for every N.
        value_width: width C of the values and of the result; default `width`.
        protocol: "chord", "cdil", or M lists of K offsets each.
        factors: number of factors M; default that of the protocol.
        links: links per row K, the self link included; default that of the protocol.
        hidden: hidden width h of every f_m and of g; default `width`.
        residual: "none", "previous" or "initial".
        heads: number of heads H. Each has links of its own and C / H of the channels.
        bias: whether the linear layers have a bias.
        dropout: probability of dropout on V_0.

    Shapes:
        x (B, N, E), N <= length; mask (B, N), bool, True where valid; source (B, N, E), what the
        links are computed from, default x; result (B, N, C). With a mask the weight and value rows
        at padding are zero: padded rows of the result are zero, and what padding holds changes no
        valid row. The ring still spans all N rows.

    Raises:
        ValueError: at construction when an argument is out of range or an offset does not fit into
            64 bits; in the call when x, mask or source has the wrong shape or N > length.
        TypeError: at construction when a size or an offset is not an integer; in the call when x or
            source is not floating or mask is not bool.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        value_width: int | None = None,
        protocol: str | Sequence[Sequence[int]] = "chord",
        factors: int | None = None,
        links: int | None = None,
        hidden: int | None = None,
        residual: str = "previous",
        heads: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        width = check_size("Paramixer", "width", width)
        length = check_size("Paramixer", "length", length)
        value_width = width if value_width is None else value_width
        value_width = check_size("Paramixer", "value_width", value_width)
        hidden = check_size("Paramixer", "hidden", width if hidden is None else hidden)
        heads = check_size("Paramixer", "heads", heads)
        check_heads("Paramixer", heads, value_width, "value_width")
        check_choice("Paramixer", "residual", residual, RESIDUALS)
        self.width = width
        self.length = length
        self.value_width = value_width
        self.protocol = protocol if isinstance(protocol, str) else "custom"
        self.offsets = _offsets(protocol, length, factors, links)
        self.factors = len(self.offsets)
        self.links = len(self.offsets[0])
        self.hidden = hidden
        self.residual = residual
        self.heads = heads
        self.link_hidden = nn.Linear(width, self.factors * hidden, bias=bias)
        self.link_output = FactorLinear(self.factors, hidden, heads * self.links, bias=bias)
        self.value_hidden = nn.Linear(width, hidden, bias=bias)
        self.value_output = nn.Linear(hidden, value_width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        """Mixes x (B, N, E) into (B, N, C); see the class for mask and source."""
        if source is None:
            source = x
        else:
            check_rows("Paramixer", "source", source, self.width)
        check_rows("Paramixer", "x", x, self.width)
        check_sequence("Paramixer", x, mask, self.length)
        if source.shape[:2] != x.shape[:2]:
            raise ValueError(
                "Paramixer: source must have the batch and length of x "
                f"(got shapes {list(source.shape)} and {list(x.shape)})"
            )
        # Values are zeroed below, too; this keeps gradients finite where padding is not.
        value = self.values(zero_padding(x, mask))
        value = zero_padding(self.dropout(value), mask)
        # (B, N, C) to (B, H, N, C / H): heads are batch dimensions.
        value = value.unflatten(2, [self.heads, self.value_width // self.heads]).transpose(1, 2)
        weight = self.head_weights(source, mask)
        mixed = mix_chain(weight, value, self.offsets, self.residual)
        return mixed.transpose(1, 2).flatten(2)

    def values(self, x: Tensor) -> Tensor:
        """V_0 = g(x), (B, N, C), before dropout."""
        # g has the form of one factor's network: it never stores its hidden layer either.
        bias = self.value_output.bias
        return torch.ops.paramixer.link_weights(
            x,
            self.value_hidden.weight,
            self.value_hidden.bias,
            self.value_output.weight.unsqueeze(0),
            None if bias is None else bias.unsqueeze(0),
        ).squeeze(2)

    def link_weights(self, x: Tensor) -> Tensor:
        """The links W computed from x (B, N, E).

        Returns:
            (B, N, M, K); with several heads (B, H, N, M, K): heads are batch dimensions.

        Raises:
            ValueError: x has the wrong shape or N > length.
            TypeError: x is not floating.
        """
        weight = self.head_weights(x, None)
        return weight.squeeze(1) if self.heads == 1 else weight

    def head_weights(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The links (B, H, N, M, K) of every head, zero in the rows the mask (B, N) excludes."""
        check_rows("Paramixer", "x", x, self.width)
        check_sequence("Paramixer", x, mask, self.length)
        weight = torch.ops.paramixer.link_weights(
            zero_padding(x, mask),
            self.link_hidden.weight,
            self.link_hidden.bias,
            self.link_output.weight,
            self.link_output.bias,
        )
        # (B, N, M, H K) to (B, H, N, M, K): heads are batch dimensions.
        weight = weight.unflatten(3, [self.heads, self.links]).permute(0, 3, 1, 2, 4)
        if mask is not None:
            weight = weight.masked_fill(~mask[:, None, :, None, None], 0)
        return weight

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return (
            f"width={self.width}, length={self.length}, value_width={self.value_width}, "
            f"protocol={self.protocol}, factors={self.factors}, links={self.links}, "
            f"hidden={self.hidden}, residual={self.residual}, heads={self.heads}"
        )


class PSFAttention(Paramixer):
    """`Paramixer` with residual "initial": every factor adds V_0 (arXiv 2109.08184).

    Args:
        width: input width E.
        length: the longest sequence.
        options: the other keyword arguments of `Paramixer`, but for `residual`.
    """

    def __init__(self, width: int, length: int, **options: Any):
        super().__init__(width, length, residual="initial", **options)


@torch.no_grad()
def average_init(module: Paramixer) -> None:
    """Makes a mixer start as the mean: every row of its result is that of all rows of the values.

    The links are constants at first, see `paramixer.links.average`, for sequences of the module's
    full length; their dependence on the data is learned. Later, shorter ones are averaged roughly.

    Args:
        module: of residual "none" or "previous", with biases. Its `link_output` is overwritten.

    Raises:
        TypeError: `module` is not a Paramixer.
        ValueError: its residual is "initial", which adds V_0 to any product; it has no biases; its
            offsets allow no average, see `paramixer.links.average`, or with residual "previous"
            hold no self link in some factor.
    """
    if not isinstance(module, Paramixer):
        raise TypeError(f"average_init: module must be a Paramixer (got {type(module).__name__})")
    check_choice("average_init", "residual of module", module.residual, ("none", "previous"))
    bias = module.link_output.bias
    if bias is None:
        raise ValueError("average_init: module must have biases (got bias False)")
    weights = protocols.average(module.offsets, module.length)
    if module.residual == "previous":  # which adds the identity to every factor
        for factor, offsets in zip(weights, module.offsets, strict=True):
            own = [k for k, offset in enumerate(offsets) if offset % module.length == 0]
            if not own:
                raise ValueError(
                    "average_init: module must have a self link in every factor for residual "
                    f"previous (got offsets {offsets})"
                )
            factor[own[0]] -= 1
    module.link_output.weight.zero_()
    bias.copy_(torch.tensor(weights, dtype=torch.float64).repeat(1, module.heads))


def _offsets(
    protocol: str | Sequence[Sequence[int]], length: int, factors: int | None, links: int | None
) -> list[list[int]]:
    if protocol == "chord":
        return protocols.chord(length, factors, links)
    if protocol == "cdil":
        return protocols.cdil(length, factors, 3 if links is None else links)
    if isinstance(protocol, str):
        raise ValueError(
            f'Paramixer: protocol must be "chord", "cdil" or lists of offsets (got {protocol!r})'
        )
    if factors is not None or links is not None:
        raise ValueError(
            "Paramixer: factors and links must be None for a protocol given as lists of offsets "
            f"(got factors {factors} and links {links})"
        )
    offsets = check_offsets("Paramixer", "protocol", protocol)
    counts = sorted({len(factor) for factor in offsets})
    if len(counts) != 1 or not 1 <= counts[0] <= protocols.MAX_LINKS:
        raise ValueError(
            "Paramixer: protocol must hold at least one factor, all with the same number of "
            f"offsets, 1 to {protocols.MAX_LINKS} (got {len(offsets)} with {counts} offsets)"
        )
    bound = 2 ** (protocols.OFFSET_BITS - 1)
    beyond = [o for factor in offsets for o in factor if not -bound <= o < bound]
    if beyond:
        raise ValueError(
            f"Paramixer: protocol must hold offsets of at most {protocols.OFFSET_BITS} bits "
            f"(got {beyond[0]})"
        )
    return offsets
