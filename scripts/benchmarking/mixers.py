"""All mixers at equal width: what each costs against N, though each applies another matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import paramixer
import torch
from paramixer.nn import opponents
from torch import Tensor, nn

from benchmarking.cases import Expected, Shape
from benchmarking.peers import Call, Calls

WIDTH, HEADS = 64, 4
MIXER_LENGTHS = [1 << power for power in range(10, 17)]

headed = {"heads": HEADS}


def linear(feature_map: str) -> Callable[[int, int], nn.Module]:
    """Linear attention, which needs no length."""
    return lambda width, _: paramixer.nn.LinearAttention(width, HEADS, feature_map=feature_map)


# The names of scripts/configs/study/mixers.yaml.
MIXERS: dict[str, Callable[[int, int], nn.Module]] = {
    "paramixer": partial(paramixer.nn.Paramixer, hidden=16),
    "paramixer-cdil": partial(paramixer.nn.Paramixer, protocol="cdil", links=3, hidden=16),
    "psf-attention": partial(paramixer.nn.PSFAttention, hidden=16),
    "chord-mixer": partial(paramixer.nn.ChordMixer, tracks=8),
    "linear-elu": linear("elu"),
    "linear-gated": linear("gated"),
    "performer": linear("favor"),
    "simpletron": lambda width, _: paramixer.nn.SimpleTron(width, HEADS),
    "monarch": partial(paramixer.nn.Monarch, **headed),
    "softmax-attention": partial(opponents.SoftmaxAttention, **headed),
    "linformer": partial(opponents.Linformer, **headed),
    "nystromformer": partial(opponents.Nystromformer, **headed),
    "local-attention": partial(opponents.LocalAttention, **headed),
    "s4d": opponents.S4D,
    "gru": lambda width, _: paramixer.nn.BidirectionalGRU(width),
}


class MixerInputs(NamedTuple):
    """What is mixed, and the gradient of the result, both (B, N, E)."""

    x: Tensor
    grad: Tensor


@dataclass(frozen=True)
class MixerCase:
    """A batch of sequences, (B, N, E)."""

    shape: Shape
    dtype: str
    device: str
    level = "mixers"
    operations = ("forward", "forward+backward")
    more_operations = ()

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.shape}{dtype}"

    def bytes(self, operation: str) -> int | None:
        """There is no minimal traffic that all mixers share."""
        return None

    def multiply_adds(self, operation: str) -> int | None:
        """Nor an amount of work."""
        return None

    def inputs(self) -> MixerInputs:
        """Random ones."""
        torch.manual_seed(0)
        options: Any = {"device": self.device, "dtype": getattr(torch, self.dtype)}
        return MixerInputs(torch.randn(self.shape, **options), torch.randn(self.shape, **options))

    def expected(self, inputs: MixerInputs) -> Expected:
        """Nothing: every mixer is another function. Their own tests check them."""
        return {}

    def small(self) -> MixerCase:
        """The same on eight rows."""
        return dataclasses.replace(self, shape=(1, 8, self.shape[2]))


def mixer_calls(name: str, case: MixerCase, inputs: MixerInputs) -> Calls:
    """A fresh mixer for this N without gradients, and with those of input and parameters."""
    _, length, width = case.shape
    torch.manual_seed(0)
    mixer = MIXERS[name](width, length).to(case.device, getattr(torch, case.dtype))
    leaves = [inputs.x.detach().requires_grad_(), *mixer.parameters()]

    def both(_: None) -> tuple[Tensor, ...]:
        result = mixer(leaves[0])
        return (result.detach(), *torch.autograd.grad(result, leaves, inputs.grad))

    return {
        "forward": Call(torch.no_grad()(lambda _: mixer(inputs.x))),
        "forward+backward": Call(both),
    }


MIXER_PEERS = {name: partial(mixer_calls, name) for name in MIXERS}
