"""What the tests share: operators with oracles, layouts, tolerances; masks, tasks to learn."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import paramixer
import pytest
import torch
from paramixer import reference
from torch.profiler import ProfilerActivity, profile

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


FACTORS = 3  # of the chains below


@dataclass(frozen=True)
class Operator:
    """A function f(*operands, offsets); `columns` says what its operands hold in a row."""

    name: str
    function: Callable
    oracle: Callable
    columns: tuple[tuple[str, ...], ...]
    linear_in: tuple[int, ...] = (0, 1)  # the gradients of these operands do not need themselves
    products: int = 1  # done one after the other
    saved: int = 2  # tensors for the backward pass
    autocasts: bool = True

    @property
    def overload(self):
        return getattr(torch.ops.paramixer, self.name).default

    def arguments(self, operands, offsets):
        """What the dispatcher's operator takes after these operands."""
        return (offsets,)

    def torchs(self, *operands_and_offsets):
        """What PyTorch makes of it in the operands' dtype: the yardstick for errors."""
        return self.oracle(*operands_and_offsets)

    def operands(self, batch, length, channels, links, **options):
        """Random operands (batch, N, columns); `batch` is one shape or one for each operand."""
        width = {"factors": FACTORS, "links": links, "channels": channels}
        width["tracks"] = links * channels
        batches = batch if batch and isinstance(batch[0], tuple) else (batch, batch)
        batches = batches[: len(self.columns)]
        return [
            torch.randn(*shape, length, *(width[column] for column in columns), **options)
            for shape, columns in zip(batches, self.columns, strict=True)
        ]


@dataclass(frozen=True)
class Chain(Operator):
    """A chain of factors, each with the offsets of the one before moved on by one."""

    residual: str = "none"

    def arguments(self, operands, offsets):
        return [o for factor in chain_offsets(offsets) for o in factor], self.residual

    def torchs(self, first, second, offsets):
        return chain_of(reference.mix, first, second, chain_offsets(offsets), self.residual)


def chain_offsets(offsets):
    return [[offset + factor for offset in offsets] for factor in range(FACTORS)]


def chain_of(mix, weight, value, offsets, residual):
    """The chain, one product at a time; every state is rounded to the dtype."""
    state = value
    for factor, links in zip(weight.unbind(-2), offsets, strict=True):
        added = {"none": 0, "previous": state, "initial": value}[residual]
        state = mix(factor, state, links) + added
    return state


def chain(residual):
    return Chain(
        "mix_chain",
        lambda w, v, offsets: paramixer.mix_chain(w, v, chain_offsets(offsets), residual),
        lambda w, v, offsets: reference.mix_chain(w, v, chain_offsets(offsets), residual),
        (("factors", "links"), ("channels",)),
        linear_in=(1,),
        products=FACTORS,
        residual=residual,
    )


@dataclass(frozen=True)
class Rotation(Operator):
    """The rotation of as many tracks as there are offsets; each has `channels` channels."""

    padded: bool = False

    def arguments(self, operands, offsets):
        return (offsets, ring_lengths(*operands)) if self.padded else (offsets,)


def ring_lengths(value):
    """N for the first sequence of value (*, N, D), one less for the next, and after 0 again N."""
    batch, length = value.shape[:-2], value.shape[-2]
    steps = torch.arange(math.prod(batch), device=value.device)
    return (length - steps % (length + 1)).view(batch)


def rotation(padded):
    lengths = lambda value: ring_lengths(value) if padded else None
    return Rotation(
        "rotate_tracks",
        lambda v, shifts: paramixer.rotate_tracks(v, shifts, lengths(v)),
        lambda v, shifts: reference.rotate_tracks(v, shifts, lengths(v)),
        (("tracks",),),
        linear_in=(0,),
        saved=int(padded),
        autocasts=False,
        padded=padded,
    )


LINKS, CHANNELS = ("links",), ("channels",)
ELEMENTARY = [
    Operator("mix", paramixer.mix, reference.mix, (LINKS, CHANNELS)),
    Operator("mix_transpose", paramixer.mix_transpose, reference.mix_transpose, (LINKS, CHANNELS)),
    Operator("link_dot", paramixer.link_dot, reference.link_dot, (CHANNELS, CHANNELS)),
]
CHAINS = [chain(residual) for residual in reference.RESIDUALS]
ROTATIONS = [rotation(padded) for padded in (False, True)]
OPERATORS = ELEMENTARY + CHAINS + ROTATIONS
OPERATOR_IDS = [operator.name for operator in ELEMENTARY]
OPERATOR_IDS += [f"mix_chain_{operator.residual}" for operator in CHAINS]
OPERATOR_IDS += ["rotate_tracks", "rotate_tracks_padded"]


def transposed(tensor):
    """Columns far apart, rows next to each other."""
    return tensor.mT.contiguous().mT


def channel_sliced(tensor):
    """Some columns of a wider tensor: rows are apart and not aligned."""
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 5), float("nan"))
    wide[..., 2:-3] = tensor
    return wide[..., 2:-3]


def offset_by_one(tensor):
    """Contiguous, from one element past an aligned address."""
    flat = tensor.new_full((tensor.numel() + 1,), float("nan"))
    flat[1:] = tensor.reshape(-1)
    return flat[1:].view(tensor.shape)


def rows_strided(tensor):
    """Every other row of a longer tensor."""
    tall = tensor.repeat_interleave(2, dim=-2)
    return tall[..., ::2, :]


def batch_last(tensor):
    """The first dimension is the innermost one in memory."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def expanded(tensor):
    """Every batch item is the first one: batch strides are zero."""
    batch = tensor.dim() - 2
    return tensor[(slice(0, 1),) * batch].expand(tensor.shape)


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": transposed,
    "channel_sliced": channel_sliced,
    "offset_by_one": offset_by_one,
    "rows_strided": rows_strided,
    "batch_last": batch_last,
    "expanded": expanded,
}


def relative_error(actual, exact):
    """2-norm of the difference over that of the exact result."""
    exact = exact.double()
    return ((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def padding_mask(lengths, rows=None):
    """True in the valid rows of sequences with these lengths, of so many rows or the longest."""
    rows = max(lengths) if rows is None else rows
    return torch.arange(rows) < torch.tensor(lengths).unsqueeze(1)


def assert_as_exact_as_torch(actual, torch_result, exact, what, products=1, magnitude=None):
    """At most twice the error PyTorch itself makes in that dtype, and a little for each product.

    In float64 that little is all there is: PyTorch's result is the exact one by definition. There
    it is a part of `magnitude`, if given: the same sums over magnitudes, as terms may cancel.
    """
    assert actual.shape == exact.shape, what
    assert actual.dtype == torch_result.dtype, what
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).norm()
    allowed = 2 * (torch_result.double() - exact).norm()
    scale = exact if magnitude is None or actual.dtype != torch.float64 else magnitude
    allowed += 2 * products * torch.finfo(actual.dtype).eps * scale.norm() + 1e-30
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def check_derivatives(function, operands):
    """First and second derivatives against differences, in every mode PyTorch knows."""
    assert torch.autograd.gradcheck(
        function,
        operands,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        function, operands, check_fwd_over_rev=True, check_rev_over_rev=True
    )


def forward_and_gradients(function, operands, offsets, grad):
    """The result, the gradients of the operands for an incoming gradient, detached."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    result = function(*leaves, offsets)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))]


def assert_learns(model, draw):
    """Within 200 steps: three batches in a row without a mistake, none trained on before.

    `draw(generator)` makes a batch: the arguments of the model, and the classes.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    right = 0
    for _ in range(200):
        *arguments, target = draw(generator)
        scores = model(*arguments)
        right = right + 1 if torch.equal(scores.argmax(1), target) else 0
        if right == 3:
            return
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, target).backward()
        optimizer.step()
    raise AssertionError("no three batches without a mistake within 200 steps")


def peak_bytes(function):
    """The most that PyTorch's CPU allocator has given out at a time while `function` ran."""
    options = {"activities": [ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with profile(**options) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


_SAVE_RESULTS = """
import importlib, sys, torch
sys.path.insert(0, sys.argv[1])
from paramixer._load import cpu_instruction_set
results = importlib.import_module(sys.argv[2]).all_results()
torch.save((cpu_instruction_set(), results), sys.argv[3])
"""


def results_of_instruction_set(module, name, path):
    """What `all_results` of a test module returns in a process of that instruction set.

    Skips the test where the processor has no such set.
    """
    process = subprocess.run(
        [sys.executable, "-c", _SAVE_RESULTS, os.path.dirname(__file__), module, str(path)],
        env={**os.environ, "PARAMIXER_CPU_ISA": name},
        capture_output=True,
        text=True,
    )
    if "must name an instruction set this processor supports" in process.stderr:
        pytest.skip(f"this processor has no {name}")
    assert process.returncode == 0, process.stderr
    used, saved = torch.load(path)
    assert used == name
    return saved
