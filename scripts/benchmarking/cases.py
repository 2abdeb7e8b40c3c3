"""What is measured: a factor, a chain or a rotation at a shape; the traffic and the exact results.

A case knows its operations, how many bytes and multiply-adds each needs at least, its random
operands, and what the results must be. `layers.py` holds one more kind, a training step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import paramixer
import torch
from paramixer import reference
from torch import Tensor

Shape = tuple[int, int, int]  # B, N, D
Inputs = tuple[Tensor, Tensor, Tensor]  # W, V, and G = dY
Expected = dict[str, tuple[Tensor, ...]]  # by operation

SHAPES: list[Shape] = [(32, 1024, 64), (16, 4096, 64), (8, 16384, 128)]
CHAINS: list[tuple[Shape, str]] = [(shape, "cdil:3") for shape in SHAPES] + [
    (SHAPES[-1], "cdil:9"),
    (SHAPES[-1], "chord"),
]
SCALING_LENGTHS = [1 << power for power in range(7, 21)]
SCALING_CHANNELS = 64
ROTATIONS: list[Shape] = [(32, 1024, 308), (8, 4096, 208), (4, 16384, 150)]  # of ChordMixer
SMALL_CHANNELS = [1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 33, 100, 128]
SMALL_CHANNELS_SHAPE = (4, 16384, 128)  # every row of that table moves the bytes of this one

# How many tensors like V and like W each operation reads or writes at least.
TRAFFIC = {
    "forward": (2, 1),
    "backward": (3, 2),
    "forward+backward": (5, 3),
    "mix_transpose": (2, 1),
    "link_dot": (2, 1),
}
# Multiply-adds of each operation in units of a forward's.
WORK = {"forward": 1, "backward": 2, "forward+backward": 3, "mix_transpose": 1, "link_dot": 1}
CHECK_BYTES = 2 << 30  # float64 states beyond this are too large to check against


def protocol_offsets(length: int, protocol: str) -> list[list[int]]:
    """The factors of "chord", or of "cdil:K" with K links a row."""
    name, _, links = protocol.partition(":")
    if name == "chord":
        return paramixer.links.chord(length)
    return paramixer.links.cdil(length, links=int(links or 3))


def random_operands(shape: Shape, per_row: tuple[int, ...], dtype: str, device: str) -> Inputs:
    """W (B, N, *per_row) scaled so that a factor keeps the size of values, V and G (B, N, D)."""
    torch.manual_seed(0)
    options: Any = {"device": device, "dtype": getattr(torch, dtype)}
    weight = torch.randn(*shape[:2], *per_row, **options).div_(math.sqrt(per_row[-1]))
    return weight, torch.randn(shape, **options), torch.randn(shape, **options)


def outer_items(x: Tensor) -> Tensor:
    """The first and the last item of a batch: what is checked."""
    return x[:: max(len(x) - 1, 1)]


def add_residual(residual: str, mixed: Tensor, state: Tensor, initial: Tensor) -> Tensor:
    """S V_{m-1} + R_m."""
    if residual == "none":
        return mixed
    return mixed + (state if residual == "previous" else initial)


def chain_states(
    mix: Callable[[int, Tensor], Tensor], value: Tensor, factors: int, residual: str
) -> list[Tensor]:
    """V_0 .. V_M, where mix(m, V) is the product with factor m."""
    states = [value]
    for m in range(factors):
        states.append(add_residual(residual, mix(m, states[-1]), states[-1], value))
    return states


def chain_gradients(
    transpose: Callable[[int, Tensor], Tensor],
    dot: Callable[[int, Tensor, Tensor], Tensor],
    grad: Tensor,
    states: list[Tensor],
    residual: str,
) -> tuple[Tensor, Tensor]:
    """DW (B, N, M, K) and dV from G and the states, written out by hand."""
    dots: list[Tensor] = []
    initial = torch.zeros_like(grad)
    for m in reversed(range(len(states) - 1)):
        dots.insert(0, dot(m, grad, states[m]))
        if residual == "initial":
            initial = initial + grad
        back = transpose(m, grad)
        grad = back + grad if residual == "previous" else back
    return torch.stack(dots, dim=-2), grad + initial if residual == "initial" else grad


@dataclass(frozen=True)
class ProductCase:
    """What factors and chains have in common."""

    shape: Shape
    protocol: str
    dtype: str
    device: str

    def links_per_row(self) -> int:
        """Links over all factors, M K."""
        raise NotImplementedError

    def bytes(self, operation: str) -> int | None:
        """The minimal traffic."""
        values, weights = TRAFFIC[operation]
        per_row = values * self.shape[2] + weights * self.links_per_row()
        return math.prod(self.shape[:2]) * per_row * getattr(torch, self.dtype).itemsize

    def multiply_adds(self, operation: str) -> int:
        """One per link and channel forward, two more backward."""
        return WORK[operation] * math.prod(self.shape) * self.links_per_row()

    def small(self) -> Self:
        """The same on eight rows."""
        return dataclasses.replace(self, shape=(1, 8, self.shape[2]))

    def label(self, links: int) -> str:
        """How tables call it."""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.shape} {self.protocol.partition(':')[0].upper()} K={links}{dtype}"


@dataclass(frozen=True)
class FactorCase(ProductCase):
    """Factor m of M of a protocol at a shape (B, N, D)."""

    factor: int
    factors: int
    offsets: tuple[int, ...]
    level = "factor"
    operations = ("forward", "backward")
    more_operations = ("mix_transpose", "link_dot")

    def __str__(self) -> str:
        place = "" if self.protocol == "chord" else f" m={self.factor} of {self.factors}"
        return self.label(len(self.offsets)) + place

    def links_per_row(self) -> int:
        """K."""
        return len(self.offsets)

    def inputs(self) -> Inputs:
        """W (B, N, K), V and G."""
        return random_operands(self.shape, (len(self.offsets),), self.dtype, self.device)

    def expected(self, inputs: Inputs) -> Expected:
        """The reference in float64 for the outer items of the batch."""
        weight, value, grad = (outer_items(x).double() for x in inputs)
        dots = reference.link_dot(grad, value, self.offsets)
        return {
            "forward": (reference.mix(weight, value, self.offsets),),
            "backward": (dots, reference.mix_transpose(weight, grad, self.offsets)),
            "mix_transpose": (reference.mix_transpose(weight, value, self.offsets),),
            "link_dot": (dots,),
        }


@dataclass(frozen=True)
class ChainCase(ProductCase):
    """All factors of a protocol, one after the other, at a shape (B, N, D)."""

    residual: str
    level = "chain"
    operations = ("forward", "forward+backward")
    more_operations = ()

    def __str__(self) -> str:
        residual = "" if self.residual == "none" else f" residual {self.residual}"
        offsets = self.offsets()
        return f"{self.label(len(offsets[0]))} M={len(offsets)}{residual}"

    def offsets(self) -> list[list[int]]:
        """M lists of K."""
        return protocol_offsets(self.shape[1], self.protocol)

    def links_per_row(self) -> int:
        """M K."""
        return sum(map(len, self.offsets()))

    def inputs(self) -> Inputs:
        """W (B, N, M, K), V and G."""
        offsets = self.offsets()
        per_row = (len(offsets), len(offsets[0]))
        return random_operands(self.shape, per_row, self.dtype, self.device)

    def expected(self, inputs: Inputs) -> Expected:
        """The reference in float64 for the outer items of the batch; nothing if that is too big."""
        offsets = self.offsets()
        if 8 * outer_items(inputs[1]).numel() * (len(offsets) + 1) > CHECK_BYTES:
            return {}
        weight, value, grad = (outer_items(x).double() for x in inputs)
        factors = weight.unbind(-2)
        mix = lambda m, v: reference.mix(factors[m], v, offsets[m])  # noqa: E731
        transpose = lambda m, g: reference.mix_transpose(factors[m], g, offsets[m])  # noqa: E731
        dot = lambda m, g, v: reference.link_dot(g, v, offsets[m])  # noqa: E731
        states = chain_states(mix, value, len(offsets), self.residual)
        gradients = chain_gradients(transpose, dot, grad, states, self.residual)
        return {"forward": (states[-1],), "forward+backward": (states[-1], *gradients)}


@dataclass(frozen=True)
class RotationCase:
    """The rotation of a ChordMixer block at a shape (B, N, D): 1 + ceil(log2 N) tracks."""

    shape: Shape
    dtype: str
    device: str
    level = "rotation"
    operations = ("forward", "forward+backward")
    more_operations = ()

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.shape} T={len(self.shifts())}{dtype}"

    def shifts(self) -> list[int]:
        """One a track."""
        return paramixer.links.chord(self.shape[1])[0]

    def bytes(self, operation: str) -> int:
        """Every element read and written once, and again for its gradient."""
        times = {"forward": 2, "forward+backward": 4}[operation]
        return times * math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def multiply_adds(self, operation: str) -> int:
        """None: bytes move."""
        return 0

    def inputs(self) -> tuple[Tensor, Tensor]:
        """V and G."""
        return random_operands(self.shape, (1,), self.dtype, self.device)[1:]

    def expected(self, inputs: tuple[Tensor, Tensor]) -> Expected:
        """The reference in float64 for the outer items of the batch."""
        value, grad = (outer_items(x).double() for x in inputs)
        shifts = self.shifts()
        result = reference.rotate_tracks(value, shifts)
        back = reference.rotate_tracks(grad, [-shift for shift in shifts])
        return {"forward": (result,), "forward+backward": (result, back)}

    def small(self) -> RotationCase:
        """The same on eight rows, whose tracks are four."""
        return dataclasses.replace(self, shape=(1, 8, 4 * self.shape[2]))


def factor_cases(shape: Shape, protocol: str, dtype: str, device: str) -> list[FactorCase]:
    """The different factors of a protocol; those of chord are all alike."""
    factors = protocol_offsets(shape[1], protocol)
    cases = [
        FactorCase(shape, protocol, dtype, device, m, len(factors), tuple(offsets))
        for m, offsets in enumerate(factors)
    ]
    return cases[:1] if protocol == "chord" else cases


def small_channel_cases(dtype: str, device: str) -> list[FactorCase]:
    """The middle factor of cdil at every small D, with as many batch items as give equal bytes."""
    links = 3
    batch, length, channels = SMALL_CHANNELS_SHAPE
    total = batch * (2 * channels + links)
    shapes = [(round(total / (2 * d + links)), length, d) for d in SMALL_CHANNELS]
    factors = [factor_cases(shape, f"cdil:{links}", dtype, device) for shape in shapes]
    return [cases[len(cases) // 2] for cases in factors]
