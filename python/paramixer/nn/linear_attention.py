"""Attention in time and memory linear in N: products with K^T V, which is d x d."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_choice, check_heads, check_mask, check_rows, check_size
from paramixer.nn._rows import at_least_float32, zero_padding
from paramixer.nn.feature_maps import FEATURE_MAPS, FeatureMap

LEAST_CHUNK = 64  # rows of the causal scan that are multiplied as matrices


class LinearState(NamedTuple):
    """What the rows so far leave behind for the next one: sums over keys, float32 or float64.

    Attributes:
        product: sum of phi(k) v^T, (B, H, r, d).
        total: sum of phi(k), (B, H, r).
    """

    product: Tensor
    total: Tensor


class _HeadAttention(nn.Module):
    """Queries, keys and values by linear layers, H heads of d = E / H channels each."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        name = type(self).__name__
        self.width = check_size(name, "width", width)
        self.heads = check_size(name, "heads", heads)
        check_heads(name, self.heads, self.width)
        self.query = nn.Linear(self.width, self.width, bias=bias)
        self.key = nn.Linear(self.width, self.width, bias=bias)
        self.value = nn.Linear(self.width, self.width, bias=bias)

    def _check(self, name: str, x: Tensor, mask_name: str, mask: Tensor | None) -> None:
        check_rows(type(self).__name__, name, x, self.width)
        if mask is not None:
            check_mask(type(self).__name__, mask_name, x, mask)

    def _split(self, projected: Tensor) -> Tensor:
        """(B, N, E) to (B, H, N, d), float32 where it was of 16 bits."""
        return at_least_float32(projected).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"width={self.width}, heads={self.heads}"


class LinearAttention(_HeadAttention):
    """Attention whose weights are inner products of features, normalised over the keys.

        y_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

    over all valid j, or over j <= i if causal, in each head; a linear layer follows. With the
    right order of products this is phi(Q) (phi(K)^T V): no N x N matrix, and the causal form keeps
    a d x r state a chunk of rows. The matrix it stands for has non-negative rows of sum 1 and at
    most rank r: for N > r it can neither copy nor permute rows.

    Katharopoulos et al. (ICML 2020, arXiv 2006.16236); `feature_maps` has the maps and their
    sources. There is no epsilon: multiplying phi by a number changes nothing, and a row whose
    normaliser is zero gives zero. Features, sums and the division are in float32 for 16-bit
    dtypes, under autocast too: at N = 4000 the normaliser alone passes what float16 holds.

    Keys are masked after phi, as phi(0) is not zero; the authors of arXiv 2211.04076 do it before
    and count padding in the normaliser.

    Args:
        width: width E of the input and of the result.
        heads: number of heads H, each of d = E / H channels.
        feature_map: a `FeatureMap` for rows of d, shared by queries and keys; or "elu", "relu",
            "favor", or one layer of the trained kernels: "single", "gated", "low_rank".
        causal: whether a row sees only itself and rows before it.
        bias: whether the linear layers have a bias.

    Shapes:
        x (B, N, E); mask (B, N), bool, True where valid; result (B, N, E), zero at padding. What
        padding holds and how much there is of it changes no valid row. For cross attention
        memory (B, N', E), which keys and values come from, and memory_mask (B, N').

    Raises:
        ValueError: at construction when an argument is out of range, heads do not divide width,
            or a causal module gets a map that is not row-wise; in the call when a tensor has the
            wrong shape, memory is given to a causal module, or memory_mask without memory.
        TypeError: at construction when a size is not an integer or feature_map is no such map; in
            the call when x or memory is not floating or a mask is not bool.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        feature_map: str | FeatureMap = "elu",
        causal: bool = False,
        bias: bool = True,
    ):
        super().__init__(width, heads, bias)
        if isinstance(feature_map, str):
            check_choice("LinearAttention", "feature_map", feature_map, FEATURE_MAPS)
            feature_map = FEATURE_MAPS[feature_map](heads, width // heads)
        if not isinstance(feature_map, FeatureMap):
            raise TypeError(
                "LinearAttention: feature_map must be a name or a FeatureMap "
                f"(got {type(feature_map).__name__})"
            )
        if causal and not feature_map.rowwise:
            raise ValueError(
                "LinearAttention: feature_map must be row-wise for causal attention "
                f"(got {type(feature_map).__name__})"
            )
        self.feature_map = feature_map
        self.causal = causal
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E); see the class for the other arguments."""
        self._check("x", x, "mask", mask)
        x = zero_padding(x, mask)
        self._check_memory(x, memory, memory_mask)
        if memory is None:
            memory, memory_mask = x, mask
        memory = zero_padding(memory, memory_mask)
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        with torch.autocast(x.device.type, enabled=False):
            queries, keys = self._features(self._split(query), self._split(key), memory_mask)
            attend = _causal_attention if self.causal else _attention
            mixed = attend(queries, keys, self._split(value))
        return zero_padding(self.output(_join(mixed, query.dtype)), mask)

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The N x N matrix of every head that `forward` applies to the values, for pictures.

        Args:
            x: (B, N, E).
            mask: (B, N), bool, True where valid.

        Returns:
            (B, H, N, N), non-negative, zero at padding; rows add up to 1.

        Raises:
            ValueError: a tensor has the wrong shape.
            TypeError: x is not floating or mask is not bool.
        """
        self._check("x", x, "mask", mask)
        x = zero_padding(x, mask)
        query, key = self.query(x), self.key(x)
        with torch.autocast(x.device.type, enabled=False):
            queries, keys = self._features(self._split(query), self._split(key), mask)
            products = queries @ keys.mT
            if self.causal:
                products = products.tril()
            matrix = _divide(products, products.sum(3, keepdim=True))
        return matrix if mask is None else zero_padding(matrix, mask[:, None])

    def step(self, x: Tensor, state: LinearState | None = None) -> tuple[Tensor, LinearState]:
        """One row of a causal module, from the sums that the rows before it left behind.

        Args:
            x: the row, (B, E).
            state: what the step for the row before returned; None for the first row.

        Returns:
            The row's result (B, E), as `forward` computes it, and the state for the next row.

        Raises:
            ValueError: the module is not causal or x has the wrong shape.
        """
        if not self.causal:
            raise ValueError("LinearAttention: step needs causal to be True (got False)")
        if x.dim() != 2 or x.shape[1] != self.width:
            raise ValueError(
                f"LinearAttention: x must be (B, E) = (B, {self.width}) (got shape {list(x.shape)})"
            )
        query, key, value = (layer(x.unsqueeze(1)) for layer in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):
            queries, keys = self._features(self._split(query), self._split(key), None)
            product, total = keys.mT @ self._split(value), keys.squeeze(2)
            if state is not None:
                product, total = product + state.product, total + state.total
            mixed = _divide(queries @ product, queries @ total.unsqueeze(3))
        return self.output(_join(mixed, query.dtype)).squeeze(1), LinearState(product, total)

    def orthogonality_loss(self) -> Tensor:
        """That of the feature map, to be added to the loss with a weight of your choice."""
        return self.feature_map.orthogonality_loss()

    def _features(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The features of queries and of keys (B, H, N, d), those of masked keys zero."""
        keys = self.feature_map.keys(key, mask)
        if mask is not None:
            keys = zero_padding(keys, mask[:, None])
        return self.feature_map.queries(query), keys

    def _check_memory(self, x: Tensor, memory: Tensor | None, memory_mask: Tensor | None) -> None:
        if memory is None:
            if memory_mask is not None:
                raise ValueError("LinearAttention: memory_mask must be None without memory")
            return
        self._check("memory", memory, "memory_mask", memory_mask)
        if self.causal:
            raise ValueError("LinearAttention: memory must be None for causal attention")
        if memory.shape[0] != x.shape[0]:
            raise ValueError(
                "LinearAttention: memory must have the batch of x "
                f"(got shapes {list(memory.shape)} and {list(x.shape)})"
            )

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"{super().extra_repr()}, causal={self.causal}"


class SimpleTron(_HeadAttention):
    """Attention without a softmax, a feature map or a normaliser.

        Y = Q (K^T V) / sqrt(n)

    in each head, n the number of valid rows (Yorsh and Kovalenko, "SimpleTRON", arXiv 2111.15588;
    a version of theirs divides by sqrt(d), too). Its matrix Q K^T / sqrt(n) has both signs and at
    most rank d. K^T V is computed in float32 for 16-bit dtypes, under autocast too.

    Args:
        width: width E of the input and of the result.
        heads: number of heads H, each of d = E / H channels.
        output: whether a linear layer follows; the published Long Range Arena networks have none.
        bias: whether the linear layers have a bias.
        dropout: probability of dropout on the entries of K^T V.

    Shapes:
        x (B, N, E); mask (B, N), bool, True where valid; result (B, N, E), zero at padding. What
        padding holds and how much there is of it changes no valid row.

    Raises:
        ValueError: at construction when an argument is out of range or heads do not divide width;
            in the call when x or mask has the wrong shape.
        TypeError: at construction when a size is not an integer; in the call when x is not
            floating or mask is not bool.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        output: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(width, heads, bias)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, width, bias=bias) if output else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E)."""
        self._check("x", x, "mask", mask)
        x = zero_padding(x, mask)
        query, key = self.query(x), zero_padding(self.key(x), mask)
        value = self.value(x)
        with torch.autocast(x.device.type, enabled=False):
            product = self._split(key).mT @ self._split(value)
            mixed = self._split(query) @ self.dropout(product)
            mixed = mixed * _rows(x, mask).to(mixed.dtype).rsqrt()
        return zero_padding(self.output(_join(mixed, query.dtype)), mask)

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The N x N matrix of every head that `forward` applies to the values, for pictures.

        Args:
            x: (B, N, E).
            mask: (B, N), bool, True where valid.

        Returns:
            (B, H, N, N), Q K^T / sqrt(n), zero at padding.

        Raises:
            ValueError: a tensor has the wrong shape.
            TypeError: x is not floating or mask is not bool.
        """
        self._check("x", x, "mask", mask)
        x = zero_padding(x, mask)
        query, key = (zero_padding(layer(x), mask) for layer in (self.query, self.key))
        with torch.autocast(x.device.type, enabled=False):
            products = self._split(query) @ self._split(key).mT
            return products * _rows(x, mask).to(products.dtype).rsqrt()


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, H, N, r), (B, H, N', r) and (B, H, N', d) to (B, H, N, d)."""
    return _divide(queries @ (keys.mT @ values), queries @ keys.sum(2).unsqueeze(3))


def _causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same over keys up to each query's row: N' = N.

    Chunks of rows multiply among themselves as matrices, and with the sum of K^T V over the chunks
    before. A chunk has at least r rows, so that these sums take no more memory than the values.
    """
    length, features = queries.shape[2:]
    size = max(LEAST_CHUNK, features)
    # An exported program keeps to its N where there is a single chunk, no padding, a slice that
    # takes all or a divided dimension: so two chunks at least, with room to spare, are unfolded.
    chunks = length // size + 2
    padding = (0, 0, 0, chunks * size - length)
    queries, keys, values = (
        F.pad(rows, padding).unfold(2, size, size).mT for rows in (queries, keys, values)
    )
    within = (queries @ keys.mT).tril()
    product, total = _before(keys.mT @ values), _before(keys.sum(3).unsqueeze(4))
    mixed = within @ values + queries @ product
    normaliser = within.sum(4, keepdim=True) + queries @ total
    kept = torch.arange(length, device=mixed.device)
    return _divide(mixed, normaliser).flatten(2, 3).index_select(2, kept)


def _before(sums: Tensor) -> Tensor:
    """The sum over all chunks before each, in dimension 2."""
    return F.pad(sums, (0, 0, 0, 0, 1, 0))[:, :, :-1].cumsum(2)


def _divide(mixed: Tensor, normaliser: Tensor) -> Tensor:
    """The quotient, and zero for 0 / 0, which no other 0 stands in as features are not negative."""
    nothing = normaliser < torch.finfo(normaliser.dtype).tiny
    return mixed / normaliser.masked_fill(nothing, 1)


def _join(heads: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, N, d) to (B, N, E)."""
    return heads.transpose(1, 2).flatten(2).to(dtype)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """How many valid rows there are, (B, 1, 1, 1), at least 1."""
    if mask is None:
        return torch.full((1, 1, 1, 1), max(x.shape[1], 1), device=x.device)
    return mask.sum(1).clamp(min=1)[:, None, None, None]
