"""The peers of factors, chains and rotations: other ways to compute the same.

Most of the first two are one *form*, a way to multiply by one factor, from which autograd makes the
gradients and a loop the chain. Index tables and sparsity patterns are made beforehand and are not
timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paramixer
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarking.cases import (
    ChainCase,
    FactorCase,
    Inputs,
    RotationCase,
    add_residual,
    chain_gradients,
    chain_states,
)

ATTENTION_BYTES = 4 << 30  # of all its N x N scores, whether or not they are ever stored

Case = FactorCase | ChainCase
Product = Callable[[Tensor, Tensor], Tensor]  # of W and V
Form = Callable[[Sequence[int], Tensor], Product]  # made for offsets and tensors like the second


class Call(NamedTuple):
    """What is timed: run(prepare()), without the time of prepare."""

    run: Callable[[Any], Tensor | tuple[Tensor, ...]]
    prepare: Callable[[], Any] = lambda: None


Calls = dict[str, Call]  # by operation


class Skipped(Exception):  # noqa: N818 - a result, not an error
    """A peer that does not take part, and why."""


def by_autograd(product: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Calls:
    """Every operation from product(W, V): without a graph, and autograd's pass through it."""
    *operands, grad = inputs
    leaves = [x.detach().requires_grad_() for x in operands]

    def both(_: None) -> tuple[Tensor, ...]:
        result = product(*leaves)
        return (result.detach(), *torch.autograd.grad(result, leaves, grad))

    return {
        "forward": Call(torch.no_grad()(lambda _: product(*operands))),
        "backward": Call(lambda y: torch.autograd.grad(y, leaves, grad), lambda: product(*leaves)),
        "forward+backward": Call(both),
    }


def paramixer_form(offsets: Sequence[int], _: Tensor) -> Product:
    """This library, one factor."""
    return lambda weight, value: paramixer.mix(weight, value, list(offsets))


def roll_form(offsets: Sequence[int], _: Tensor) -> Product:
    """Plain PyTorch: a torch.roll, a product and a sum per link."""

    def product(weight: Tensor, value: Tensor) -> Tensor:
        total = weight[..., :1] * torch.roll(value, -offsets[0], -2)
        for k, offset in enumerate(offsets[1:], 1):
            total = total + weight[..., k : k + 1] * torch.roll(value, -offset, -2)
        return total

    return product


def link_table(offsets: Sequence[int], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column (N K) of every link, row by row."""
    rows = torch.arange(length, device=device).repeat_interleave(len(offsets))
    columns = (rows + torch.tensor(offsets, device=device).repeat(length)) % length
    return rows, columns


def gather_scatter_form(offsets: Sequence[int], like: Tensor) -> Product:
    """What the published code computes: gather a row per link, multiply, scatter_add."""
    rows, columns = link_table(offsets, like.shape[-2], like.device)

    def product(weight: Tensor, value: Tensor) -> Tensor:
        terms = weight.flatten(-2)[..., None] * value.index_select(-2, columns)
        return torch.zeros_like(value).scatter_add(-2, rows[:, None].expand_as(terms), terms)

    return product


def torch_sparse_form(offsets: Sequence[int], like: Tensor) -> Product:
    """The package that the published code calls."""
    from torch_sparse import spmm

    length = like.shape[-2]
    index = torch.stack(link_table(offsets, length, like.device))
    return lambda weight, value: spmm(index, weight.flatten(-2), length, length, value)


def product_of(case: Case, form: Form, like: Tensor) -> Product:
    """A factor's product, or the chain's as a loop over the factors."""
    if isinstance(case, FactorCase):
        return form(case.offsets, like)
    factors = [form(offsets, like) for offsets in case.offsets()]

    def chain(weight: Tensor, value: Tensor) -> Tensor:
        state = value
        for m, factor in enumerate(factors):
            mixed = factor(weight[..., m, :], state)
            state = add_residual(case.residual, mixed, state, value)
        return state

    return chain


def from_form(form: Form) -> Callable[[Case, Inputs], Calls]:
    """The peer that computes in that form."""
    return lambda case, inputs: by_autograd(product_of(case, form, inputs[1]), inputs)


def paramixer_factor(case: Case, inputs: Inputs) -> Calls:
    """This library; its backward is one fused sweep."""
    assert isinstance(case, FactorCase)
    weight, value, grad = inputs
    offsets = list(case.offsets)
    return from_form(paramixer_form)(case, inputs) | {
        "mix_transpose": Call(lambda _: paramixer.mix_transpose(weight, value, offsets)),
        "link_dot": Call(lambda _: paramixer.link_dot(grad, value, offsets)),
    }


def paramixer_backward(case: Case, inputs: Inputs) -> Calls:
    """The operator behind our backward, called without autograd and what autograd costs."""
    assert isinstance(case, FactorCase)
    weight, value, grad = inputs
    backward, offsets = torch.ops.paramixer.mix_backward, list(case.offsets)
    return {"backward": Call(lambda _: backward(grad, weight, value, offsets))}


def paramixer_chain(case: Case, inputs: Inputs) -> Calls:
    """This library, all factors in one operator."""
    assert isinstance(case, ChainCase)
    offsets, residual = case.offsets(), case.residual
    return by_autograd(lambda w, v: paramixer.mix_chain(w, v, offsets, residual), inputs)


def compiled_roll(case: Case, inputs: Inputs) -> Calls:
    """torch.compile of the roll form; with fullgraph it raises at the recompilation limit."""
    from torch._dynamo.utils import counters  # seconds to import

    torch._dynamo.reset()  # the limit counts the recompilations of all shapes together
    counters.clear()
    function = torch.compile(product_of(case, roll_form, inputs[1]), fullgraph=True, dynamic=False)
    calls = by_autograd(function, inputs)
    calls["forward"].run(None)
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("fell back to eager")
    return calls


class BlockDiagonal:
    """One factor's sparsity, the batch as one block-diagonal CSR matrix."""

    def __init__(self, offsets: Sequence[int], batch: int, length: int, device: torch.device):
        self.links, self.rows = len(offsets), batch * length
        ring = link_table(offsets, length, device)[1]
        columns = (ring + length * torch.arange(batch, device=device)[:, None]).flatten()
        self.order = columns.argsort(stable=True)
        starts = torch.arange(0, len(columns) + 1, self.links, device=device)
        # 32-bit indices, which the library's fast kernels want.
        self.starts, self.columns = starts.int(), columns.int()
        self.transposed = (self.order // self.links).int()

    def matrix(self, values: Tensor, columns: Tensor) -> Tensor:
        """The CSR matrix of these values."""
        size = (self.rows, self.rows)
        return torch.sparse_csr_tensor(self.starts, columns, values, size, check_invariants=False)

    def mix(self, weight: Tensor, value: Tensor) -> Tensor:
        """S V."""
        return self.matrix(weight, self.columns) @ value

    def transpose(self, weight: Tensor, value: Tensor) -> Tensor:
        """S^T V."""
        return self.matrix(weight[self.order], self.transposed) @ value

    def dot(self, grad: Tensor, value: Tensor) -> Tensor:
        """The gradient (B N, K) of the weights."""
        pattern = self.matrix(grad.new_zeros(self.rows * self.links), self.columns)
        dots = torch.sparse.sampled_addmm(pattern, grad, value.t(), beta=0.0)
        return dots.values().view(self.rows, self.links)


def csr(case: Case, inputs: Inputs) -> Calls:
    """torch.sparse; weights are laid out factor by factor beforehand.

    Autograd of the product makes a dense (B*N, B*N) gradient, so backward is what a careful user
    writes instead: the transposed matrix times G, and sampled_addmm for dW.
    """
    chain = isinstance(case, ChainCase)
    offsets = case.offsets() if isinstance(case, ChainCase) else [list(case.offsets)]
    residual = case.residual if isinstance(case, ChainCase) else "none"
    weight, value, grad = inputs[0], *(x.flatten(0, 1) for x in inputs[1:])
    weights = [w.flatten() for w in (weight.unbind(-2) if chain else [weight])]
    batch, length = case.shape[:2]
    patterns = {tuple(o): BlockDiagonal(o, batch, length, value.device) for o in offsets}
    factors = [patterns[tuple(o)] for o in offsets]

    def states() -> list[Tensor]:
        mix = lambda m, v: factors[m].mix(weights[m], v)  # noqa: E731
        return chain_states(mix, value, len(factors), residual)

    def forward(_: None) -> Tensor:
        state = value
        for factor, own in zip(factors, weights, strict=True):
            state = add_residual(residual, factor.mix(own, state), state, value)
        return state.view(case.shape)

    def backward(states: list[Tensor]) -> tuple[Tensor, Tensor]:
        transpose = lambda m, g: factors[m].transpose(weights[m], g)  # noqa: E731
        dot = lambda m, g, v: factors[m].dot(g, v)  # noqa: E731
        dots, result = chain_gradients(transpose, dot, grad, states, residual)
        return dots.view_as(weight), result.view(case.shape)

    def both(_: None) -> tuple[Tensor, ...]:
        computed = states()
        return (computed[-1].view(case.shape), *backward(computed))

    return {
        "forward": Call(forward),
        "backward": Call(backward, lambda: [value, value]),  # V_1 is not needed
        "forward+backward": Call(both),
    }


def attention(case: Case, inputs: Inputs) -> Calls:
    """Dense attention at equal (B, N, D), one head: another function, the one that is replaced."""
    batch, length, _ = case.shape
    if batch * length**2 * inputs[1].element_size() > ATTENTION_BYTES:
        raise Skipped(f"N x N beyond {ATTENTION_BYTES >> 30} GiB")
    leaves = [torch.randn_like(inputs[1]).requires_grad_() for _ in range(3)]

    def forward(_: None) -> Tensor:
        queries, keys, values = (x[:, None] for x in leaves)
        return F.scaled_dot_product_attention(queries, keys, values)[:, 0]

    def both(_: None) -> tuple[Tensor, ...]:
        result = forward(None)
        return (result.detach(), *torch.autograd.grad(result, leaves, inputs[2]))

    return {"forward": Call(torch.no_grad()(forward)), "forward+backward": Call(both)}


def triton_mix(case: Case, inputs: Inputs) -> Calls:
    """A Triton kernel of one factor."""
    from benchmarking import triton_mix as kernel

    assert isinstance(case, FactorCase)
    weight, value, _ = inputs
    reduced = [offset % case.shape[1] for offset in case.offsets]
    offsets = torch.tensor(reduced, dtype=torch.int32, device=value.device)
    return {"forward": Call(lambda _: kernel.mix(weight, value, offsets))}


def rotation(case: RotationCase, inputs: tuple[Tensor, ...]) -> Calls:
    """This library."""
    shifts = case.shifts()
    return by_autograd(lambda value: paramixer.rotate_tracks(value, shifts), inputs)


def rolls(case: RotationCase, inputs: tuple[Tensor, ...]) -> Calls:
    """The published form: split the channels, torch.roll every track, concatenate."""
    shifts = case.shifts()

    def roll_and_cat(value: Tensor) -> Tensor:
        tracks = value.chunk(len(shifts), -1)
        rolled = [torch.roll(x, -shift, -2) for x, shift in zip(tracks, shifts, strict=True)]
        return torch.cat(rolled, -1)

    return by_autograd(roll_and_cat, inputs)


ATTENTION = "attention (another function)"
PEERS: dict[str, dict[str, Callable[[Any, Any], Calls]]] = {
    "factor": {
        "paramixer": paramixer_factor,
        "mix_backward": paramixer_backward,
        "torch.compile(roll)": compiled_roll,
        "torch.sparse CSR": csr,
        "torch.roll": from_form(roll_form),
        "gather-scatter_add": from_form(gather_scatter_form),
        "torch_sparse": from_form(torch_sparse_form),
        "triton": triton_mix,
    },
    "chain": {
        "paramixer": paramixer_chain,
        "sequence of mix": from_form(paramixer_form),
        "torch.compile(roll)": compiled_roll,
        "torch.sparse CSR": csr,
        "torch.roll": from_form(roll_form),
        "gather-scatter_add": from_form(gather_scatter_form),
        "torch_sparse": from_form(torch_sparse_form),
        ATTENTION: attention,
    },
    "rotation": {"paramixer": rotation, "torch.roll and cat": rolls},
}
COMPILED = {"torch.compile(roll)"}  # whose first call compiles
UNCHECKED = {ATTENTION}
