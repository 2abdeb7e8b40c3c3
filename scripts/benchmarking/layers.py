"""Whole training steps: published networks, as this library and as the published code compute them.

The configurations are those of the papers' code (PSF-Attn: arXiv 2109.08184, Paramixer: arXiv
2204.10670) and their training steps too: zero_grad, forward, backward, Adam with learning rate
1e-3. The two peers are one `SequenceClassifier` with the same parameters and different mixers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import paramixer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarking.cases import Expected, add_residual, outer_items
from benchmarking.peers import Call, Calls, gather_scatter_form


class LayerInputs(NamedTuple):
    """A model of this library, a batch, and what it should answer."""

    model: nn.Module
    x: Tensor
    target: Tensor


@dataclass(frozen=True)
class LayerCase:
    """A published configuration; `vocabulary` 0 is real input with two features (adding)."""

    name: str
    batch: int
    length: int
    width: int
    value_width: int
    hidden: int
    layers: int = 1
    residual: str = "previous"
    vocabulary: int = 0
    classes: int = 1
    positions: str = "none"
    pooling: str = "flatten"
    embedding_dropout: float = 0.0
    dropout: float = 0.0
    dtype: str = "float32"
    device: str = "cpu"
    level = "layer"
    operations = ("forward", "step")
    more_operations = ()

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{self.name}: N={self.length} B={self.batch}{dtype}"

    def bytes(self, operation: str) -> int | None:
        """There is no minimal traffic to compare with: what stays on chip is the question."""
        return None

    def multiply_adds(self, operation: str) -> int:
        """Networks, products and head; a step is a forward and two more for the gradients."""
        factors = paramixer.links.chord(self.length)
        links = sum(map(len, factors))
        per_row = len(factors) * self.width * self.hidden + links * self.hidden
        per_row += (self.width + self.value_width) * self.hidden + links * self.value_width
        rows = self.batch * self.length
        pooled = rows if self.pooling == "flatten" else self.batch
        forward = rows * (self.layers * per_row + (0 if self.vocabulary else 2 * self.width))
        forward += pooled * self.value_width * self.classes
        return forward * (3 if operation == "step" else 1)

    def inputs(self) -> LayerInputs:
        """A fresh model and random data."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        model = self.model().to(self.device, dtype)
        size = (self.batch, self.length)
        if self.vocabulary:
            x = torch.randint(self.vocabulary, size, device=self.device)
            target = torch.randint(self.classes, size[:1], device=self.device)
        else:
            x = torch.rand(*size, 2, device=self.device, dtype=dtype)
            target = torch.rand(size[:1], device=self.device, dtype=dtype)
        return LayerInputs(model, x, target)

    def model(self) -> paramixer.nn.SequenceClassifier:
        """This library's network."""
        mixers = [
            paramixer.nn.Paramixer(
                self.width,
                self.length,
                value_width=self.value_width,
                hidden=self.hidden,
                residual=self.residual,
            )
            for _ in range(self.layers)
        ]
        tokens, real = {"vocabulary": self.vocabulary}, {"features": 2}
        return paramixer.nn.SequenceClassifier(
            mixers,
            width=self.width,
            length=self.length,
            classes=self.classes,
            positions=self.positions,
            pooling=self.pooling,
            links_from="embedding",
            embedding_dropout=self.embedding_dropout,
            dropout=self.dropout,
            **(tokens if self.vocabulary else real),
        )

    def expected(self, inputs: LayerInputs) -> Expected:
        """This library in float64, without dropout, for the outer items of the batch."""
        model = copy.deepcopy(inputs.model).double().eval()
        x = outer_items(inputs.x)
        with torch.no_grad():
            return {"forward": (model(x if self.vocabulary else x.double()),)}

    def small(self) -> LayerCase:
        """The same with 16 positions."""
        return dataclasses.replace(self, batch=2, length=16)


LAYERS = [
    LayerCase(
        "Paramixer, LRA Image",
        batch=64,
        length=1024,
        width=32,
        value_width=32,
        hidden=32,
        vocabulary=256,
        classes=10,
        positions="learned",
        embedding_dropout=0.2,
        dropout=0.8,
    ),
    LayerCase("Paramixer, adding", batch=40, length=4096, width=32, value_width=32, hidden=32),
    LayerCase(
        "Paramixer, LRA Text",
        batch=8,
        length=4097,
        width=32,
        value_width=32,
        hidden=128,
        layers=3,
        vocabulary=97,
        classes=2,
        pooling="first",
        embedding_dropout=0.4,
    ),
    LayerCase(
        "PSF-Attn, adding",
        batch=40,
        length=1024,
        width=32,
        value_width=8,
        hidden=32,
        residual="initial",
    ),
]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


class PublishedMixer(nn.Module):
    """A `Paramixer` in the published formulation, with the same parameters.

    M separate networks Linear-GELU-Linear make the links; every factor is a gather of a row per
    link, a product and a scatter_add, and its residual is added afterwards. Takes x (B, N, E) and
    source (B, N, E), gives (B, N, C).
    """

    def __init__(self, ours: paramixer.nn.Paramixer):
        super().__init__()
        self.value_width, self.residual = ours.value_width, ours.residual
        hidden, output = ours.link_hidden, ours.link_output
        inner = zip(hidden.weight.split(ours.hidden), hidden.bias.split(ours.hidden), strict=True)
        outer = zip(output.weight, output.bias, strict=True)
        self.links = nn.ModuleList(
            nn.Sequential(linear(*first), nn.GELU(), linear(*second))
            for first, second in zip(inner, outer, strict=True)
        )
        layers = copy.deepcopy([ours.value_hidden, ours.value_output])
        self.values = nn.Sequential(layers[0], nn.GELU(), layers[1])
        like = hidden.weight.new_empty(ours.length, 0)
        forms = {tuple(o): gather_scatter_form(o, like) for o in ours.offsets}
        self.products = [forms[tuple(o)] for o in ours.offsets]

    def forward(self, x: Tensor, mask: None = None, source: Tensor | None = None) -> Tensor:
        """Mixes x with links computed from source."""
        initial = state = self.values(x)
        for links, product in zip(self.links, self.products, strict=True):
            mixed = product(links(source), state)
            state = add_residual(self.residual, mixed, state, initial)
        return state


def training_calls(case: LayerCase, inputs: LayerInputs, model: nn.Module) -> Calls:
    """A forward without gradients or dropout, and a whole training step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss: Callable[..., Tensor] = F.cross_entropy if case.vocabulary else F.mse_loss

    def step(_: Any) -> Tensor:
        optimizer.zero_grad()
        output = model(inputs.x)
        value = loss(output if case.vocabulary else output.squeeze(1), inputs.target)
        value.backward()
        optimizer.step()
        return value.detach()

    return {
        "forward": Call(torch.no_grad()(lambda _: model(inputs.x)), model.eval),
        "step": Call(step, model.train),
    }


def ours(case: LayerCase, inputs: LayerInputs) -> Calls:
    """This library; a model of its own, since steps change the parameters."""
    return training_calls(case, inputs, copy.deepcopy(inputs.model))


def published(case: LayerCase, inputs: LayerInputs) -> Calls:
    """The published formulation."""
    model = copy.deepcopy(inputs.model)
    model.mixers = nn.ModuleList(PublishedMixer(mixer) for mixer in model.mixers)
    return training_calls(case, inputs, model)


LAYER_PEERS = {"paramixer": ours, "published formulation": published}
