"""Counts what every system of docs/ costs and writes the tables of its pages.

    python scripts/count_costs.py docs

Parameters are those of the module. Multiply-adds are those of matrix products, links, convolutions
and FFTs (n log2 n for n real values) in a forward pass of one sequence; work that goes with the
elements, as of activations, norms and softmax, is not counted. What is kept for the backward pass
are the tensors that autograd saves, parameters excepted, in numbers of 4 bytes. The formulas
are Python; a test evaluates them and compares with what is counted.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from paramixer import nn
from paramixer.nn import opponents
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

WIDTH, LENGTH = 64, 1024
FAR = 16 * LENGTH
KEPT_LENGTHS = (256, 1024, 4096)
BEGIN, END = "<!-- by: python scripts/count_costs.py docs -->", "<!-- end -->"

Sizes = dict[str, int]


@dataclass(frozen=True)
class System:
    """A module as a page shows it.

    Attributes:
        page: the file in docs/, without its suffix.
        call: how it is made, for readers; `make` is the same for any length.
        make: takes a length.
        sizes: what stands in the formulas besides E and N, from the module.
        parameters: a formula of the sizes.
        multiply_adds: another, for a token.
    """

    page: str
    call: str
    make: Callable[[int], torch.nn.Module]
    sizes: Callable[[Any], Sizes]
    parameters: str
    multiply_adds: str

    def value(self, formula: str, length: int = LENGTH) -> float:
        """What a formula gives."""
        return eval(formula, {"log2": math.log2}, sizes_at(self, length))


@cache
def sizes_at(system: System, length: int) -> Sizes:
    """All that stands in the formulas of a system."""
    module = system.make(length)
    return {"E": module.width, "N": length} | system.sizes(module)


def of_chain(module: nn.Paramixer) -> Sizes:
    """The sizes of a chain of sparse factors."""
    return {
        "M": module.factors,
        "K": module.links,
        "h": module.hidden,
        "C": module.value_width,
        "H": module.heads,
    }


def of_heads(module: Any) -> Sizes:
    """Heads and their width."""
    return {"H": module.heads, "d": module.width // module.heads}


def of_features(module: nn.LinearAttention) -> Sizes:
    """Heads and the width of their features."""
    return of_heads(module) | {"r": module.feature_map.features}


def chord_mixer(length: int) -> nn.ChordMixer:
    """With the least width from `WIDTH` on that its tracks divide."""
    tracks = 1 + (length - 1).bit_length()
    return nn.ChordMixer(-(-WIDTH // tracks) * tracks, length)


CHAIN_PARAMETERS = "(E+1)*(M+1)*h + M*(h+1)*H*K + (h+1)*C"
CHAIN_MULTIPLY_ADDS = "E*(M+1)*h + M*h*H*K + h*C + M*K*C"
SYSTEMS = (
    System(
        "paramixer",
        "Paramixer(64, 1024)",
        lambda length: nn.Paramixer(WIDTH, length),
        of_chain,
        CHAIN_PARAMETERS,
        CHAIN_MULTIPLY_ADDS,
    ),
    System(
        "paramixer",
        'Paramixer(64, 1024, protocol="cdil", hidden=16)',
        lambda length: nn.Paramixer(WIDTH, length, protocol="cdil", hidden=16),
        of_chain,
        CHAIN_PARAMETERS,
        CHAIN_MULTIPLY_ADDS,
    ),
    System(
        "psf-attention",
        "PSFAttention(64, 1024, value_width=16)",
        lambda length: nn.PSFAttention(WIDTH, length, value_width=16),
        of_chain,
        CHAIN_PARAMETERS,
        CHAIN_MULTIPLY_ADDS,
    ),
    System(
        "chord-mixer",
        "ChordMixer(66, 1024)",
        chord_mixer,
        lambda module: {"M": len(module.blocks), "h": module.blocks[0].hidden.out_features},
        "M*(2*E + (E+1)*h + (h+1)*E)",
        "2*M*E*h",
    ),
    System(
        "lama",
        "LamaPooling(64, 4)",
        lambda length: nn.LamaPooling(WIDTH, 4),
        lambda module: {"m": module.heads},
        "E*(E+1) + 2*E*m + E",
        "E*E + 2*E*m + E*m/N",
    ),
    System(
        "linear-attention",
        "LinearAttention(64, 4)",
        lambda length: nn.LinearAttention(WIDTH, 4),
        of_features,
        "4*E*(E+1)",
        "4*E*E + H*r*(2*d+1)",
    ),
    System(
        "linear-attention",
        'LinearAttention(64, 4, feature_map="gated")',
        lambda length: nn.LinearAttention(WIDTH, 4, feature_map="gated"),
        lambda module: of_features(module) | {"L": len(module.feature_map.layers)},
        "4*E*(E+1) + 2*L*H*d*d",
        "4*E*E + H*r*(2*d+1) + 4*L*H*d*d",
    ),
    System(
        "linear-attention",
        "SimpleTron(64, 4)",
        lambda length: nn.SimpleTron(WIDTH, 4),
        of_heads,
        "3*E*(E+1)",
        "3*E*E + 2*H*d*d",
    ),
    System(
        "monarch",
        "Monarch(64, 1024, 4)",
        lambda length: nn.Monarch(WIDTH, length, 4),
        lambda module: {"H": module.heads, "b": module.block, "m": module.inner.shape[1]},
        "2*E*(E+1) + H*b*m*(b+m)",
        "2*E*E + E*(b+m)",
    ),
    System(
        "opponents",
        "SoftmaxAttention(64, 1024, heads=4)",
        lambda length: opponents.SoftmaxAttention(WIDTH, length, heads=4),
        lambda module: {},
        "4*E*(E+1)",
        "4*E*E + 2*N*E",
    ),
    System(
        "opponents",
        "TransformerBlock(64, 1024, heads=4)",
        lambda length: opponents.TransformerBlock(WIDTH, length, heads=4),
        lambda module: {"h": 4 * module.width},
        "4*E*(E+1) + (E+1)*h + (h+1)*E + 4*E",
        "4*E*E + 2*N*E + 2*E*h",
    ),
    System(
        "opponents",
        "Linformer(64, 1024, heads=4)",
        lambda length: opponents.Linformer(WIDTH, length, heads=4),
        lambda module: {"r": module.rank},
        "4*E*(E+1) + 2*N*r",
        "4*E*E + 4*r*E",
    ),
    System(
        "opponents",
        'LinearAttention(64, 4, feature_map="favor")',
        lambda length: nn.LinearAttention(WIDTH, 4, feature_map="favor"),
        of_features,
        "4*E*(E+1)",
        "4*E*E + H*r*(4*d+1)",
    ),
    System(
        "opponents",
        "LocalAttention(64, 1024, heads=4)",
        lambda length: opponents.LocalAttention(WIDTH, length, heads=4),
        lambda module: {"w": module.window},
        "4*E*(E+1)",
        "4*E*E + 6*w*E*(N+w)/N",
    ),
    System(
        "opponents",
        "Nystromformer(64, 1024, heads=4)",
        lambda length: opponents.Nystromformer(WIDTH, length, heads=4),
        lambda module: of_heads(module) | {"m": module.landmarks, "k": module.taps.shape[1]},
        "4*E*(E+1) + H*k",
        "4*E*E + 6*m*E + k*E + 2*H*m*m*(d + 12*m)/N",
    ),
    System(
        "opponents",
        "S4D(64, 1024)",
        lambda length: opponents.S4D(WIDTH, length),
        lambda module: {"s": module.states},
        "2*E*(E+1) + 6*E*s + 2*E",
        "2*E*E + 6*E*log2(2*N) + 8*E*s*(int(N**.5)+1)**2/N",
    ),
)


def example(module: torch.nn.Module, length: int) -> Tensor:
    """One sequence."""
    return torch.randn(1, length, module.width)  # type: ignore[call-overload]


def count_parameters(module: torch.nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: torch.nn.Module, length: int) -> float:
    """Those of a forward pass, for one token of it."""
    operators = torch.ops.paramixer
    counted = {
        operators.link_weights: _of_link_weights,
        operators.mix_chain: _of_chain,
        torch.ops.aten.bmm: _of_bmm,
        torch.ops.aten._fft_r2c: _of_fft,
        torch.ops.aten._fft_c2r: _of_fft,
    }
    counter = FlopCounterMode(display=False, custom_mapping=counted)
    # Without a fused kernel attention is two products that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module.eval()(example(module, length))
    return counter.get_total_flops() / 2 / length


@cache
def count_kept(system: System, length: int) -> float:
    """Numbers that autograd saves for the backward pass, for one token."""
    module = system.make(length)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = example(module, length).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module.train()(x)
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    del result
    return sum(size for place, size in kept.items() if place not in own) / 4 / length


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula of tensors instead of their shapes, as FlopCounterMode wants it marked."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


@_raw
def _of_link_weights(
    x: Tensor, hidden: Tensor, _: Any, output: Tensor, *__: Any, **___: Any
) -> int:
    return 2 * x[..., 0].numel() * (hidden.numel() + output.numel())


@_raw
def _of_chain(weight: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * weight.numel() * value.shape[-1]


@_raw
def _of_bmm(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return (8 if left.is_complex() else 2) * left.numel() * right.shape[-1]


@_raw
def _of_fft(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    real = out_val if x.is_complex() else x
    return int(2 * real.numel() * math.log2(real.shape[-1]))


def page_table(systems: Iterable[System]) -> str:
    """Formulas and numbers of the systems of a page."""
    lengths = "; ".join(f"{length:,}" for length in KEPT_LENGTHS)
    lines = [
        f"| E = {WIDTH}, N = {LENGTH:,} | parameters | multiply-adds a token | "
        f"kept for backward, numbers a token at N = {lengths} |",
        "|---|---|---|---|",
    ]
    for system in systems:
        sizes = sizes_at(system, LENGTH)
        named = ", ".join(f"{name} = {size:,}" for name, size in sizes.items() if name not in "N")
        cells = [
            f"`{system.call}`<br>{named}",
            f"`{system.parameters}`<br>{system.value(system.parameters):,.0f}",
            f"`{system.multiply_adds}`<br>{system.value(system.multiply_adds):,.0f}",
            "; ".join(f"{count_kept(system, n):,.0f}" for n in KEPT_LENGTHS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def index_table() -> str:
    """A line for every system."""
    lines = [
        f"| module | parameters | multiply-adds a token, N = {LENGTH:,} | N = {FAR:,} | "
        f"kept for backward, numbers a token, N = {LENGTH:,} |",
        "|---|---|---|---|---|",
    ]
    for system in SYSTEMS:
        cells = [
            f"[`{system.call}`]({system.page}.md)",
            f"{system.value(system.parameters):,.0f}",
            f"{system.value(system.multiply_adds):,.0f}",
            f"{system.value(system.multiply_adds, FAR):,.0f}",
            f"{count_kept(system, LENGTH):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every table, by its page."""
    pages = dict.fromkeys(system.page for system in SYSTEMS)
    found = {page: page_table(s for s in SYSTEMS if s.page == page) for page in pages}
    return found | {"README": index_table()}


def main() -> None:
    """Writes the tables between the marks of their pages."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/count_costs.py docs")
    torch.set_num_threads(1)
    for page, table in tables().items():
        path = Path(sys.argv[1]) / f"{page}.md"
        parts = re.split(f"{BEGIN}.*?{END}", path.read_text(), flags=re.DOTALL)
        if len(parts) != 2:
            sys.exit(f"count_costs: {path} must hold one pair of marks (got {len(parts) - 1})")
        path.write_text(f"{BEGIN}\n{table}\n{END}".join(parts))


if __name__ == "__main__":
    main()
