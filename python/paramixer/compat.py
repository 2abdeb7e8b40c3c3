"""Reads parameters saved by the published code of PSF-Attn and Paramixer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paramixer._checks import check_choice, check_size
from paramixer.nn import Paramixer, SequenceClassifier
from paramixer.reference import RESIDUALS

_POSITION_TABLES = ("pos_embedding.weight", "apc_embedding.weight")
_PROTOCOLS = ("chord", "cdil")
_POOLINGS = {"flatten": "flatten", "first": "first", "cls": "first"}


def load_official(
    state_dict: Mapping[str, Tensor],
    *,
    length: int,
    protocol: str = "chord",
    residual: str = "previous",
    pooling: str = "flatten",
    padding_idx: int | None = None,
    positions: bool | None = None,
) -> SequenceClassifier:
    """Builds the classifier that a published state dict belongs to, with its parameters.

    Widths, the number of layers and factors, links per row and the head are read from the
    parameters; the arguments say what these do not tell. Understood are the names of both
    publications (PSF-Attn: arXiv 2109.08184, Paramixer: arXiv 2204.10670): `embedding` or, for real
    input, `init_linear`; `pos_embedding` or `apc_embedding`; `fs.{m}.network.{0,2}` and
    `g.network.{0,2}`, both also after `attention.{layer}.`; `final` or, for the head with a hidden
    layer, `final.{0,2}`. The published code saves tables that it does not use; they may be present.

    Nothing normalises trained factors: the logits of the published Pathfinder network were seen to
    reach 3.6e5, its states more. float32 and bfloat16 hold that. In float16, autocast included,
    states beyond 65504 are infinite and the logits of their sequences infinite or NaN, never
    finite and wrong; other sequences of the batch are not touched. So use bfloat16 for 16 bits.

    Dropout is zero in the result: set `model.dropout.p` and its like to train on.

    Args:
        state_dict: parameters by name, all of one dtype, which the result takes over.
        length: the sequence length N of the network, with a class token where it has one.
        protocol: "chord" or "cdil".
        residual: "previous" (Paramixer), "initial" (PSF-Attn with residuals) or "none" (without).
        pooling: "flatten", or "first" (also "cls"): the row of the class token, which is part of
            the input.
        padding_idx: token whose embedding gets no gradient.
        positions: whether the positional table takes part. Default: when there is one and the input
            is tokens. Pass False where it was saved but switched off (Text, long documents, the
            genome task of PSF-Attn): the parameters do not tell.

    Returns:
        A `SequenceClassifier` with `links_from="embedding"`, on the CPU.

    Raises:
        ValueError: a parameter is missing, unknown or of the wrong shape (each named), or an
            argument is out of range.
        TypeError: `length` or `padding_idx` is not an integer.
    """
    length = check_size("load_official", "length", length)
    check_choice("load_official", "protocol", protocol, _PROTOCOLS)
    check_choice("load_official", "residual", residual, RESIDUALS)
    check_choice("load_official", "pooling", pooling, _POOLINGS)
    published = _Published(state_dict)
    arguments, ours = _input(published, length, positions)

    mixers = []
    for layer, prefix in enumerate(published.layers()):
        mixer, parameters = _mixer(
            published,
            prefix,
            arguments["width"],
            length=length,
            protocol=protocol,
            residual=residual,
        )
        mixers.append(mixer)
        ours |= {f"mixers.{layer}.{name}": tensor for name, tensor in parameters.items()}

    rows = length if _POOLINGS[pooling] == "flatten" else 1
    head_arguments, head = _head(published, rows * mixers[-1].value_width)
    ours |= head
    published.check_all_read()

    model = SequenceClassifier(
        mixers,
        length=length,
        padding_idx=padding_idx,
        pooling=_POOLINGS[pooling],
        links_from="embedding",
        **arguments,
        **head_arguments,
    ).to(ours["embedding.weight"].dtype)
    model.load_state_dict(ours)
    return model


class _Published:
    """The published parameters: checks each one's shape and remembers which were read."""

    def __init__(self, state_dict: Mapping[str, Tensor]):
        self._state_dict = state_dict
        self._unread = set(state_dict)

    def take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        tensor = self._state_dict[self.require(name)].detach()
        fits = len(shape) == tensor.dim() and all(
            expected in (None, size) for expected, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("*" if size is None else str(size) for size in shape)
            raise ValueError(
                f"load_official: {name} must have the shape [{expected}] "
                f"(got shape {list(tensor.shape)})"
            )
        self._unread.discard(name)
        return tensor

    def ignore(self, name: str) -> None:
        self._unread.discard(name)

    def linear(self, name: str, out_features: int | None, in_features: int | None) -> list[Tensor]:
        """Weight and bias of a linear layer."""
        weight = self.take(f"{name}.weight", (out_features, in_features))
        return [weight, self.take(f"{name}.bias", (weight.shape[0],))]

    def count(self, prefix: str) -> int:
        """One more than the largest index in names `{prefix}{index}.`, at least 1."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        matches = (pattern.match(name) for name in self._state_dict)
        return max((int(match[1]) + 1 for match in matches if match), default=1)

    def layers(self) -> list[str]:
        """What the names of every layer's mixer start with."""
        if not any(name.startswith("attention.") for name in self._state_dict):
            return [""]
        return [f"attention.{layer}." for layer in range(self.count("attention."))]

    def first(self, *names: str) -> str | None:
        """The first of `names` that is there."""
        return next((name for name in names if name in self._state_dict), None)

    def require(self, *names: str) -> str:
        """The first of `names` that is there; ValueError when none is."""
        name = self.first(*names)
        if name is None:
            raise ValueError(
                f"load_official: state_dict must hold {' or '.join(names)} "
                f"(got {len(self._state_dict)} other names)"
            )
        return name

    def check_all_read(self) -> None:
        if self._unread:
            raise ValueError(
                "load_official: state_dict must hold only published parameters "
                f"(got {', '.join(sorted(self._unread))})"
            )


def _input(
    published: _Published, length: int, positions: bool | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The classifier's arguments and parameters up to the first mixer."""
    arguments: dict[str, Any]
    # Published networks for real input save an embedding table, too.
    tokens = published.require("init_linear.weight", "embedding.weight") == "embedding.weight"
    if tokens:
        weight = published.take("embedding.weight", (None, None))
        parameters = {"embedding.weight": weight}
        arguments = {"vocabulary": weight.shape[0], "width": weight.shape[1]}
    else:
        weight, bias = published.linear("init_linear", None, None)
        parameters = {"embedding.weight": weight, "embedding.bias": bias}
        arguments = {"features": weight.shape[1], "width": weight.shape[0]}
        published.ignore("embedding.weight")
    table = published.first(*_POSITION_TABLES)
    if positions is None:
        positions = tokens and table is not None
    if positions:
        shape = (length, arguments["width"])
        name = published.require(*_POSITION_TABLES)
        parameters["positions.weight"] = published.take(name, shape)
    for name in _POSITION_TABLES:
        published.ignore(name)
    arguments["positions"] = "learned" if positions else "none"
    return arguments, parameters


def _mixer(
    published: _Published, prefix: str, width: int, **arguments: Any
) -> tuple[Paramixer, dict[str, Tensor]]:
    """One layer's mixer, and its parameters by our names."""
    networks = [f"{prefix}fs.{m}.network" for m in range(published.count(f"{prefix}fs."))]
    hidden = published.linear(f"{networks[0]}.0", None, width)[0].shape[0]
    links = published.linear(f"{networks[0]}.2", None, hidden)[0].shape[0]
    inner = [published.linear(f"{network}.0", hidden, width) for network in networks]
    outer = [published.linear(f"{network}.2", links, hidden) for network in networks]
    value_hidden = published.linear(f"{prefix}g.network.0", hidden, width)
    value_output = published.linear(f"{prefix}g.network.2", None, hidden)
    mixer = Paramixer(
        width,
        value_width=value_output[0].shape[0],
        factors=len(networks),
        links=links,
        hidden=hidden,
        **arguments,
    )
    parameters = {}
    for part, index in (("weight", 0), ("bias", 1)):
        parameters[f"link_hidden.{part}"] = torch.cat([layer[index] for layer in inner])
        parameters[f"link_output.{part}"] = torch.stack([layer[index] for layer in outer])
        parameters[f"value_hidden.{part}"] = value_hidden[index]
        parameters[f"value_output.{part}"] = value_output[index]
    return mixer, parameters


def _head(published: _Published, in_features: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The classifier's arguments and parameters after the pooling."""
    if published.require("final.weight", "final.0.weight") == "final.weight":
        weight, bias = published.linear("final", None, in_features)
        return {"classes": weight.shape[0]}, {"head.weight": weight, "head.bias": bias}
    inner = published.linear("final.0", None, in_features)
    outer = published.linear("final.2", None, inner[0].shape[0])
    names = ("head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias")
    parameters = dict(zip(names, inner + outer, strict=True))
    return {"classes": outer[0].shape[0], "head_hidden": inner[0].shape[0]}, parameters
