"""What the operator tests share: operators with oracles, operands, layouts, tolerances."""

from collections.abc import Callable
from dataclasses import dataclass

import paramixer
import torch
from paramixer import reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Operator:
    """A bilinear f(first, second, offsets); `columns` says what its operands' columns are."""

    name: str
    function: Callable
    oracle: Callable
    columns: tuple[str, str]

    @property
    def overload(self):
        return getattr(torch.ops.paramixer, self.name).default

    def operands(self, batch, length, channels, links, **options):
        """Random operands (batch, N, columns); `batch` is one shape or one for each operand."""
        width = {"links": links, "channels": channels}
        batches = batch if batch and isinstance(batch[0], tuple) else (batch, batch)
        return [
            torch.randn(*shape, length, width[columns], **options)
            for shape, columns in zip(batches, self.columns, strict=True)
        ]


OPERATORS = [
    Operator("mix", paramixer.mix, reference.mix, ("links", "channels")),
    Operator(
        "mix_transpose", paramixer.mix_transpose, reference.mix_transpose, ("links", "channels")
    ),
    Operator("link_dot", paramixer.link_dot, reference.link_dot, ("channels", "channels")),
]
OPERATOR_IDS = [operator.name for operator in OPERATORS]


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


def assert_as_exact_as_torch(actual, torch_result, exact, what):
    """At most twice the error PyTorch itself makes in that dtype, and a little."""
    assert actual.shape == exact.shape, what
    assert actual.dtype == torch_result.dtype, what
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).norm()
    allowed = 2 * (torch_result.double() - exact).norm()
    allowed += 2 * torch.finfo(actual.dtype).eps * exact.norm() + 1e-30
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def forward_and_gradients(function, operands, offsets, grad):
    """The result, the gradients of the operands for an incoming gradient, detached."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    result = function(*leaves, offsets)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))]
