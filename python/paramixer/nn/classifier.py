"""A sequence classifier around a stack of mixers."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from paramixer._checks import check_choice, check_integer, check_sequence, check_size
from paramixer.nn._rows import mean_of_valid, zero_padding
from paramixer.nn.deep import ChannelDropout
from paramixer.nn.lama import LamaPooling

POSITIONS = ("none", "learned", "sinusoidal")
POOLINGS = ("flatten", "mean", "first", "valid", "lama")
LINKS_FROM = ("layer", "embedding")
LAMA_HEADS = 5  # as published


class LearnedPositions(nn.Module):
    """Adds a trained vector to every position."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """X (B, N, E), N <= length, with the positions added."""
        return x + self.weight[: x.shape[1]]


class SinusoidalPositions(nn.Module):
    """Adds sin(i r_c) to channel 2 c and cos(i r_c) to channel 2 c + 1, r_c = 10000^(-2 c / E).

    Vaswani et al., arXiv 1706.03762.
    """

    table: Tensor

    def __init__(self, length: int, width: int):
        super().__init__()
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        angle = torch.arange(length).unsqueeze(1) * rate
        table = torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)[:, :width]
        self.register_buffer("table", table.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, N, E), N <= length, with the positions added."""
        return x + self.table[: x.shape[1]].to(x.dtype)


class SequenceClassifier(nn.Module):
    """Embedding, positions, a stack of mixers, pooling and a head.

    Plain, every mixer's result replaces its input: x = dropout(mixer(x)). With `norm` it is added
    to its input, which is normalised before: x = x + dropout(mixer(LayerNorm(x))), where dropout is
    that of whole channels (`ChannelDropout`), and one more LayerNorm precedes the pooling.

    The published networks are the plain form with `links_from="embedding"`, the links of every
    layer computed from the embedded input: PSF-Attn has one `PSFAttention`, Paramixer any number
    of `Paramixer`. (Its published code applies the embedding dropout twice on the way to the first
    layer's values, this once.)

    Args:
        mixers: modules called as mixer(x, mask), x (B, N, width of its input). A mixer whose result
            has another width states it as its attribute `value_width`. Where it has attributes
            `length` and `width`, they have to fit.
        width: embedding width E.
        length: the longest sequence N.
        classes: number of outputs.
        vocabulary: number of tokens: the input is (B, N), integer. Either this or `features`.
        features: width of real input: the input is (B, N, features), floating.
        padding_idx: token whose embedding is zero at first and gets no gradient.
        positions: "none", "learned" or "sinusoidal".
        pooling: "flatten" (all rows side by side; every sequence then has N = length), "mean" (over
            all N rows), "first" (row 0), "valid" (mean over the rows where mask is True, zero
            where there are none; without a mask over all) or "lama" (the means of `LamaPooling`
            side by side; TorchScript cannot compile it).
        pooling_options: settings of `LamaPooling` by name, `heads` (default 5) among them.
        head_hidden: hidden width of a head Linear-GELU-Linear; default a single linear layer.
        links_from: "layer": a mixer computes its links from its own input. "embedding": from the
            embedded input, which it is given as `source`.
        norm: whether the stack is normalised and residual, as above.
        embedding_dropout: probability of dropout on the embedded input.
        dropout: probability of dropout on every mixer's result, so also right before the pooling;
            with `norm` of whole channels.

    Shapes:
        input as above, N >= 1; mask (B, N), bool, True where valid; result (B, classes). With a
        mask, what padding holds does not change the result (for pooling "first" row 0 has to be
        valid).

    Raises:
        ValueError: at construction when an argument is out of range or contradicts another, or a
            mixer states a `length` below this one or another `width` than its input has; in the
            call when the input has the wrong shape, N > length, N = 0, or N != length with
            "flatten".
        TypeError: at construction when a size is not an integer; in the call when tokens are not
            int64 or int32, real values are not floating or the mask is not bool.
    """

    # Constants to TorchScript, which then leaves out the branch that is not taken: a mixer without
    # `source` can be scripted.
    __constants__ = ("links_from_embedding", "norm")

    def __init__(
        self,
        mixers: Iterable[nn.Module],
        *,
        width: int,
        length: int,
        classes: int,
        vocabulary: int | None = None,
        features: int | None = None,
        padding_idx: int | None = None,
        positions: str = "none",
        pooling: str = "mean",
        pooling_options: dict[str, Any] | None = None,
        head_hidden: int | None = None,
        links_from: str = "layer",
        norm: bool = False,
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        if len(self.mixers) == 0:
            raise ValueError("SequenceClassifier: mixers must hold at least one module (got 0)")
        check_choice("SequenceClassifier", "positions", positions, POSITIONS)
        check_choice("SequenceClassifier", "pooling", pooling, POOLINGS)
        check_choice("SequenceClassifier", "links_from", links_from, LINKS_FROM)
        width = check_size("SequenceClassifier", "width", width)
        length = check_size("SequenceClassifier", "length", length)
        self.width = width
        self.length = length
        self.pooling = pooling
        self.links_from_embedding = links_from == "embedding"
        self.norm = norm
        self.embedding = _embedding(width, vocabulary, features, padding_idx)
        self.features = 0 if features is None else int(features)
        self.positions = _positions(positions, length, width)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        widths = _result_widths(self.mixers, width, length, self.links_from_embedding)
        if norm and set(widths) != {width}:
            raise ValueError(
                "SequenceClassifier: mixers must have results of the width of their input for norm "
                f"(got widths {widths} and {width})"
            )
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if norm else nn.Identity() for _ in self.mixers
        )
        self.final_norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = ChannelDropout(dropout) if norm else nn.Dropout(dropout)
        self.lama = _lama(pooling, widths[-1], pooling_options)
        rows = self.lama.heads if self.lama is not None else length if pooling == "flatten" else 1
        self.head = _head(widths[-1] * rows, head_hidden, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N) or real values (B, N, F) to (B, classes)."""
        self._check(x, mask)
        self._check_pooled(x.shape[1])
        return self.head(self._pool(self.encode(x, mask), mask))

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The embedded input (B, N, E), with positions, zero at padding."""
        self._check(x, mask)
        embedded = self.embedding_dropout(self.positions(self.embedding(x)))
        return zero_padding(embedded, mask)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What is pooled: (B, N, width of the last mixer's result), zero at padding."""
        embedded = self.embed(x, mask)
        state = embedded
        for mixer, norm in zip(self.mixers, self.norms):  # noqa: B905 - TorchScript
            if self.links_from_embedding:
                mixed = mixer(norm(state), mask=mask, source=embedded)
            else:
                mixed = mixer(norm(state), mask=mask)
            mixed = self.dropout(mixed)
            if self.norm:
                mixed = state + mixed
            state = mixed
        return zero_padding(self.final_norm(state), mask)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "flatten":
            return x.flatten(1)
        if self.pooling == "first":
            return x[:, 0]
        if self.lama is not None:
            return self.lama(x, mask)[0].flatten(1)
        return mean_of_valid(x, mask if self.pooling == "valid" else None)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if self.features == 0:
            if x.dim() != 2:
                raise ValueError(
                    f"SequenceClassifier: x must be tokens (B, N) (got shape {list(x.shape)})"
                )
            if x.dtype != torch.int64 and x.dtype != torch.int32:
                raise TypeError(
                    f"SequenceClassifier: x must be int64 or int32 tokens (got {x.dtype})"
                )
        else:
            if x.dim() != 3 or x.shape[2] != self.features:
                raise ValueError(
                    f"SequenceClassifier: x must be values (B, N, {self.features}) "
                    f"(got shape {list(x.shape)})"
                )
            if not x.is_floating_point():
                raise TypeError(f"SequenceClassifier: x must be floating (got {x.dtype})")
        check_sequence("SequenceClassifier", x, mask, self.length)

    def _check_pooled(self, rows: int) -> None:
        if self.pooling == "flatten":
            if rows != self.length:
                raise ValueError(
                    f"SequenceClassifier: x must have N = length = {self.length} for pooling "
                    f"flatten (got N = {rows})"
                )
        elif rows == 0:
            raise ValueError(
                f"SequenceClassifier: x must have N >= 1 for pooling {self.pooling} (got N = 0)"
            )

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        links_from = "embedding" if self.links_from_embedding else "layer"
        return (
            f"width={self.width}, length={self.length}, pooling={self.pooling}, "
            f"links_from={links_from}, norm={self.norm}"
        )


def _result_widths(
    mixers: Iterable[nn.Module], width: int, length: int, links_from_embedding: bool
) -> list[int]:
    """The width of every mixer's result; raises where a mixer's length or width does not fit."""
    results: list[int] = []
    for index, mixer in enumerate(mixers):
        inputs = {results[-1] if results else width}
        if links_from_embedding:
            inputs.add(width)
        stated = getattr(mixer, "width", None)
        if stated is not None and inputs != {stated}:
            raise ValueError(
                f"SequenceClassifier: mixers[{index}] must have the width of its input "
                f"(got width {stated} and input of width {' and '.join(map(str, sorted(inputs)))})"
            )
        longest = getattr(mixer, "length", length)
        if longest < length:
            raise ValueError(
                f"SequenceClassifier: mixers[{index}] must take sequences of length {length} "
                f"(got length {longest})"
            )
        results.append(int(getattr(mixer, "value_width", results[-1] if results else width)))
    return results


def _embedding(
    width: int, vocabulary: int | None, features: int | None, padding_idx: int | None
) -> nn.Module:
    if vocabulary is not None and features is None:
        vocabulary = check_size("SequenceClassifier", "vocabulary", vocabulary)
        if padding_idx is not None:
            padding_idx = check_integer("SequenceClassifier", "padding_idx", padding_idx)
            if not -vocabulary <= padding_idx < vocabulary:
                raise ValueError(
                    f"SequenceClassifier: padding_idx must be one of the {vocabulary} tokens "
                    f"(got {padding_idx})"
                )
        return nn.Embedding(vocabulary, width, padding_idx=padding_idx)
    if features is None or vocabulary is not None:
        raise ValueError(
            "SequenceClassifier: exactly one of vocabulary and features must be given "
            f"(got vocabulary {vocabulary} and features {features})"
        )
    if padding_idx is not None:
        raise ValueError(
            f"SequenceClassifier: padding_idx must be None without vocabulary (got {padding_idx})"
        )
    return nn.Linear(check_size("SequenceClassifier", "features", features), width)


def _positions(kind: str, length: int, width: int) -> nn.Module:
    if kind == "learned":
        return LearnedPositions(length, width)
    if kind == "sinusoidal":
        return SinusoidalPositions(length, width)
    return nn.Identity()


def _lama(pooling: str, width: int, options: dict[str, Any] | None) -> LamaPooling | None:
    if pooling == "lama":
        return LamaPooling(width, **{"heads": LAMA_HEADS} | (options or {}))
    if options:
        raise ValueError(
            "SequenceClassifier: pooling_options must be None without pooling lama "
            f"(got {options} and pooling {pooling})"
        )
    return None


def _head(in_features: int, hidden: int | None, classes: int) -> nn.Module:
    classes = check_size("SequenceClassifier", "classes", classes)
    if hidden is None:
        return nn.Linear(in_features, classes)
    hidden = check_size("SequenceClassifier", "head_hidden", hidden)
    return nn.Sequential(nn.Linear(in_features, hidden), nn.GELU(), nn.Linear(hidden, classes))
