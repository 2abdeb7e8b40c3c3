"""Feature maps phi of linear attention, which weighs a key by phi(q) . phi(k)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_choice, check_size

GATES = ("none", "full", "low_rank")
EPSILON = 1e-4  # keeps features positive that exp rounds to zero


class FeatureMap(nn.Module):
    """A map phi of every head's rows to features that are not negative.

    `LinearAttention` hands it float32 even under autocast and in 16-bit modules, so a map with
    parameters casts them to the dtype of its input. A map of your own defines `forward`, and
    `queries` and `keys` too where the two differ.

    Args:
        features: width r of the result.

    Attributes:
        features: the same.
        rowwise: whether every row's features depend on that row alone. Causal attention needs it.
    """

    rowwise = True

    def __init__(self, features: int):
        super().__init__()
        self.features = check_size(type(self).__name__, "features", features)

    def forward(self, x: Tensor) -> Tensor:
        """The features (B, H, N, r) of x (B, H, N, d)."""
        raise NotImplementedError

    def queries(self, x: Tensor) -> Tensor:
        """The features (B, H, N, r) of queries (B, H, N, d)."""
        return self(x)

    def keys(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The features (B, H, N, r) of keys (B, H, N, d).

        Args:
            x: the keys.
            mask: (B, N), bool, True where valid. Attention leaves out the others' features itself;
                a map that is not row-wise uses it to leave them out of what rows share.
        """
        return self(x)

    def orthogonality_loss(self) -> Tensor:
        """How far trained weights are from orthogonal; zero where there are none."""
        return torch.zeros(())


class EluPlusOne(FeatureMap):
    """``phi(x) = elu(x) + 1`` elementwise (Katharopoulos et al., ICML 2020, arXiv 2006.16236).

    Args:
        width: width d of a head, which is that of the features, too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, d) to (B, H, N, d), positive."""
        # Not elu(x) + 1 literally: that rounds to zero from x = -17 on.
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class Relu(FeatureMap):
    """``phi(x) = max(x, 0)`` elementwise. A query without a positive feature attends to nothing.

    Args:
        width: width d of a head, which is that of the features, too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, d) to (B, H, N, d)."""
        return F.relu(x)


class Favor(FeatureMap):
    """Random features whose inner product estimates the softmax kernel, exp(q . k / sqrt(d)).

    ``phi_r(x) = (exp(w_r . y - |y|^2 / 2 - c) + 1e-4) / sqrt(R)``, ``y = x / d^(1/4)``, r = 1 .. R

    FAVOR+ of Performer (Choromanski et al., ICLR 2021, arXiv 2009.14794): the w_r are orthogonal
    in blocks of d and as long as normal vectors. c is the largest exponent, of its own row for a
    query, of all of a head's valid keys for a key: anything else would change the ratios of keys.
    So it is not row-wise, and not for causal attention.

    Args:
        width: width d of a head.
        features: number of features R; default floor(d ln d), at least 1.
    """

    rowwise = False
    projection: Tensor

    def __init__(self, width: int, features: int | None = None):
        width = check_size("Favor", "width", width)
        super().__init__(max(1, int(width * math.log(width))) if features is None else features)
        self.register_buffer("projection", torch.empty(self.features, width))
        self.redraw()

    def redraw(self) -> None:
        """Draws the w_r anew."""
        count, width = self.projection.shape
        normal = torch.randn(-(-count // width), width, width, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        # Q itself is not uniform, as the signs of R's diagonal are: the estimate would be biased.
        directions = (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).flatten(0, 1)[:count]
        lengths = torch.randn(count, width, dtype=torch.float64).norm(dim=1, keepdim=True)
        self.projection.copy_(directions * lengths)

    def forward(self, x: Tensor) -> Tensor:
        """The features of queries."""
        return self.queries(x)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, N, d) to (B, H, N, R), positive; c is each row's own."""
        exponents = self._exponents(x)
        return self._features(exponents, exponents.amax(3, keepdim=True))

    def keys(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, d) to (B, H, N, R), positive; c is that of a head's valid keys."""
        exponents = self._exponents(x)
        if x.shape[2] == 0:
            return exponents
        if mask is not None:
            exponents = exponents.masked_fill(~mask[:, None, :, None], -math.inf)
        highest = exponents.amax((2, 3), keepdim=True)
        return self._features(exponents, highest.masked_fill(highest == -math.inf, 0))

    def _exponents(self, x: Tensor) -> Tensor:
        x = x * x.shape[3] ** -0.25
        return x @ self.projection.to(x.dtype).mT - x.square().sum(3, keepdim=True) / 2

    def _features(self, exponents: Tensor, highest: Tensor) -> Tensor:
        return ((exponents - highest).exp() + EPSILON) * self.features**-0.5

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"width={self.projection.shape[1]}, features={self.features}"


class FeedForwardKernel(FeatureMap):
    """A trained feed-forward network with one set of weights a head, the same for q and k.

    Every layer takes rows x to ``s(x W)`` (gate "none"), ``s(x W) * sigmoid(x G)`` ("full") or
    ``s(x W) * sigmoid(x A B)`` ("low_rank"), where s is softplus in the last layer, which makes
    the features positive, and the identity before it. Yorsh and Kovalenko, "Linear Self-Attention
    Approximation via Trainable Feedforward Kernel" (ICANN 2022, arXiv 2211.04076). W starts
    orthogonal; G, A and B normal as in He et al., arXiv 1502.01852.

    The authors divide the features by sqrt(d), which cancels, and have a variant x + s(..), which
    is not positive and left out here.

    Args:
        heads: number of heads H.
        width: width d of a head, which is that of the features, too.
        layers: number of layers L; 1 without a gate, where more would be one matrix all the same.
        gate: "none", "full" or "low_rank".
        rank: columns of A for "low_rank"; default max(1, d // 4).
        bias: whether x W has a bias.
        dropout: probability of dropout on the input of every layer. Queries and keys draw apart.

    Raises:
        ValueError: an argument is out of range or contradicts another.
        TypeError: a size is not an integer.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        layers: int = 1,
        gate: str = "none",
        rank: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(check_size("FeedForwardKernel", "width", width))
        heads = check_size("FeedForwardKernel", "heads", heads)
        layers = check_size("FeedForwardKernel", "layers", layers)
        check_choice("FeedForwardKernel", "gate", gate, GATES)
        if gate == "none" and layers > 1:
            raise ValueError(f"FeedForwardKernel: layers must be 1 without a gate (got {layers})")
        if gate != "low_rank" and rank is not None:
            raise ValueError(f"FeedForwardKernel: rank must be None for gate {gate} (got {rank})")
        rank = check_size("FeedForwardKernel", "rank", max(1, width // 4) if rank is None else rank)
        gates = {"none": [], "full": [(width, width)], "low_rank": [(width, rank), (rank, width)]}
        self.layers = nn.ModuleList(
            _KernelLayer(heads, width, gates[gate], bias, positive=layer == layers - 1)
            for layer in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, d) to (B, H, N, d), positive."""
        for layer in self.layers:
            x = layer(self.dropout(x))
        return x

    def orthogonality_loss(self) -> Tensor:
        """The sum over layers of the mean over heads and entries of ``(W W^T - I)^2``.

        Zero at the start, and differentiable. The authors count it once for queries and once for
        keys: their weight 0.1 is 0.2 of this.
        """
        losses: list[Tensor] = [layer.orthogonality_loss() for layer in self.layers]  # type: ignore
        return torch.stack(losses).sum()


class _KernelLayer(nn.Module):
    """``s(x W + b) * sigmoid(x G_1 G_2 ..)`` with weights of its own for each head.

    Args:
        heads: number of heads H.
        width: width d.
        gates: the shapes of the G_i; without any there is no sigmoid.
        bias: whether there is b.
        positive: whether s is softplus; else it is the identity.
    """

    def __init__(
        self, heads: int, width: int, gates: list[tuple[int, int]], bias: bool, positive: bool
    ):
        super().__init__()
        self.positive = positive
        self.weight = nn.Parameter(torch.empty(heads, width, width))
        self.gates = nn.ParameterList(nn.Parameter(torch.empty(heads, *shape)) for shape in gates)
        self.bias = nn.Parameter(torch.empty(heads, 1, width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        for head in self.weight:
            nn.init.orthogonal_(head)
        for gate in self.gates:
            nn.init.normal_(gate, std=math.sqrt(2 / gate.shape[1]))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1])
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, d) to (B, H, N, d)."""
        result = x @ self.weight.to(x.dtype)
        if self.bias is not None:
            result = result + self.bias.to(x.dtype)
        if self.positive:
            result = F.softplus(result)
        if len(self.gates) == 0:
            return result
        gate = x
        for factor in self.gates:
            gate = gate @ factor.to(x.dtype)
        return result * gate.sigmoid()

    def orthogonality_loss(self) -> Tensor:
        """The mean over heads and entries of (W W^T - I)^2."""
        identity = torch.eye(
            self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device
        )
        return (self.weight @ self.weight.mT - identity).square().mean()

    def extra_repr(self) -> str:
        """What `print` shows."""
        heads, width, _ = self.weight.shape
        return f"heads={heads}, width={width}, bias={self.bias is not None}"


FEATURE_MAPS: dict[str, Callable[[int, int], FeatureMap]] = {
    "elu": lambda heads, width: EluPlusOne(width),
    "relu": lambda heads, width: Relu(width),
    "favor": lambda heads, width: Favor(width),
    "single": lambda heads, width: FeedForwardKernel(heads, width),
    "gated": lambda heads, width: FeedForwardKernel(heads, width, gate="full"),
    "low_rank": lambda heads, width: FeedForwardKernel(heads, width, gate="low_rank"),
}
