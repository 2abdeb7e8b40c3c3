"""Which network meets which task: any mixer by its name, a head for what the task asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from paramixer._checks import check_choice
from paramixer.nn import (
    BidirectionalGRU,
    ChordMixer,
    LinearAttention,
    Monarch,
    Paramixer,
    PSFAttention,
    SequenceClassifier,
    SimpleTron,
    opponents,
    with_feed_forward,
)
from paramixer.tasks.task import Classes, Task, Tokens
from paramixer.training.learner import Learner


def _of_any_length(mixer: type[nn.Module]) -> Callable[..., nn.Module]:
    @wraps(mixer)
    def make(width: int, length: int, **settings: Any) -> nn.Module:
        return mixer(width, **settings)

    return make


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "chord-mixer": ChordMixer,
    "gru": _of_any_length(BidirectionalGRU),
    "linear-attention": _of_any_length(LinearAttention),
    "linformer": opponents.Linformer,
    "local-attention": opponents.LocalAttention,
    "monarch": Monarch,
    "nystromformer": opponents.Nystromformer,
    "paramixer": Paramixer,
    "psf-attention": PSFAttention,
    "s4d": opponents.S4D,
    "simpletron": _of_any_length(SimpleTron),
    "softmax-attention": opponents.SoftmaxAttention,
    "transformer": opponents.TransformerBlock,
}
"""Called as MIXERS[name](width, length, **settings)."""


def network_for(
    task: Task,
    *,
    mixer: str = "paramixer",
    width: int = 32,
    layers: int = 1,
    protocol: str | None = None,
    factors: int | None = None,
    links: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    value_width: int | None = None,
    value_dropout: float | None = None,
    options: dict[str, Any] | None = None,
    feed_forward: int | None = None,
    norm: bool = False,
    links_from: str = "layer",
    positions: str = "none",
    pooling: str = "valid",
    pooling_options: dict[str, Any] | None = None,
    head_hidden: int | None = None,
    embedding_range: float | None = None,
    embedding_dropout: float = 0.0,
    dropout: float = 0.0,
    class_token: bool = False,
) -> nn.Module:
    """A network for the inputs and the output of a task; see `SequenceClassifier` for its form.

    Args:
        task: what it is for.
        mixer: one of `MIXERS`.
        width: of the embedding, E.
        layers: how many mixers.
        protocol: "chord" or "cdil", as all up to `options` a setting of the mixer; null leaves it
            to the mixer, and a mixer without this setting refuses any other value.
        factors: M.
        links: K, the self link included.
        hidden: width of the networks that make links and values.
        heads: of every mixer.
        value_width: width of the mixers' results.
        value_dropout: probability of dropout on the values (the mixer's `dropout`).
        options: further settings of the mixer by name.
        feed_forward: hidden width of a gated layer behind every mixer; null for none.
        norm: whether layers are normalised and residual.
        links_from: "layer" or "embedding", what the links are computed from.
        positions: "none", "learned" or "sinusoidal".
        pooling: "flatten", "mean", "first", "valid" or "lama".
        pooling_options: settings of `LamaPooling` by name, for pooling "lama".
        head_hidden: hidden width of the head; null for one linear layer.
        embedding_range: draws the embedding of tokens uniformly from +- this; null for N(0, 1).
        embedding_dropout: probability of dropout on the embedded input.
        dropout: probability of dropout on every layer's result.
        class_token: whether the last token of the vocabulary precedes every sequence.

    Returns:
        Called as network(x, mask) with the fields of a `Batch`; the result is what `Learner` takes.

    Raises:
        ValueError: an argument is out of its range, contradicts another, or does not fit the task.
        TypeError: a size is not an integer.
    """
    check_choice("network_for", "mixer", mixer, MIXERS)
    length = task.length + class_token
    given = {
        "protocol": protocol,
        "factors": factors,
        "links": links,
        "hidden": hidden,
        "heads": heads,
        "value_width": value_width,
        "dropout": value_dropout,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    settings |= options or {}
    _check_settings(mixer, settings)
    stack = [MIXERS[mixer](width, length, **settings) for _ in range(layers)]
    if feed_forward is not None:
        stack = with_feed_forward(stack, width, feed_forward, dropout)
    tokens = task.input if isinstance(task.input, Tokens) else None
    classifier = SequenceClassifier(
        stack,
        width=width,
        length=length,
        classes=task.output.count if isinstance(task.output, Classes) else 1,
        vocabulary=None if tokens is None else tokens.vocabulary,
        features=getattr(task.input, "width", None),
        padding_idx=None if tokens is None else tokens.padding,
        positions=positions,
        pooling=pooling,
        pooling_options=pooling_options,
        head_hidden=head_hidden,
        links_from=links_from,
        norm=norm,
        embedding_dropout=embedding_dropout,
        dropout=dropout,
    )
    if embedding_range is not None:
        _redraw_embedding(classifier, embedding_range)
    network: nn.Module = classifier
    if isinstance(task.output, Classes) and task.output.positions is not None:
        network = LastPositions(classifier, task.output.positions)
    elif task.sequences == 2:
        network = Comparison(classifier)
    return ClassToken(network, tokens) if class_token else network


def learner_for(
    task: Task,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: str = "constant",
    warmup: float = 0.0,
    roc_auc: bool = False,
    seed: int = 0,
    compile: bool = False,
    **network: Any,
) -> Learner:
    """A network for a task and how it is trained: `network_for` inside a `Learner`.

    Args:
        task: what is learned.
        learning_rate: as all up to `compile` an argument of `Learner`: the largest.
        weight_decay: of AdamW; 0 makes it Adam.
        schedule: "constant" or "cosine".
        warmup: share of all steps in which the learning rate rises.
        roc_auc: whether the area under the ROC curve is measured.
        seed: of the random numbers of the training steps.
        compile: whether the network runs through `torch.compile`.
        network: arguments of `network_for`.

    Raises:
        ValueError: an argument is out of its range, contradicts another, or does not fit the task.
        TypeError: a size is not an integer.
    """
    return Learner(
        network_for(task, **network),
        task.output,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        roc_auc=roc_auc,
        seed=seed,
        compile=compile,
    )


class LastPositions(nn.Module):
    """The classes at the last valid positions of every sequence.

    Args:
        classifier: whose head serves every position by itself.
        positions: how many, P.

    Shapes:
        x (B, N) or (B, N, F); mask (B, N); result (B, P, classes).

    Raises:
        ValueError: at construction when the classifier's head takes more than one row.
    """

    def __init__(self, classifier: SequenceClassifier, positions: int):
        super().__init__()
        if classifier.pooling in ("flatten", "lama"):
            raise ValueError(
                "LastPositions: pooling must be mean, first or valid for a task that asks for a "
                f"class at every position (got {classifier.pooling})"
            )
        self.classifier, self.count = classifier, positions

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        rows = self.classifier.encode(x, mask)
        if mask is None:
            return self.classifier.head(rows[:, -self.count :])
        place = mask.sum(1, keepdim=True) + torch.arange(-self.count, 0, device=x.device)
        last = rows.gather(1, place.unsqueeze(2).expand(-1, -1, rows.shape[2]))
        return self.classifier.head(last)


class Comparison(nn.Module):
    """Classes of a pair of sequences, from what one encoder makes of each.

    The head, Linear-GELU-Linear, reads (u, v, u * v, u - v), u and v being what the classifier's
    own head would read of the two sequences: the form of most results on LRA's Retrieval since
    2021, to which those of the original concatenation are not comparable.

    Args:
        classifier: the encoder; its head is replaced.

    Shapes:
        x (B, 2, N) or (B, 2, N, F); mask (B, 2, N); result (B, classes).

    Raises:
        ValueError: at construction when the classifier's head has a hidden layer.
    """

    def __init__(self, classifier: SequenceClassifier):
        super().__init__()
        head = classifier.head
        if not isinstance(head, nn.Linear):
            raise ValueError(
                "Comparison: head_hidden must be None for a task of two sequences (got a width): "
                "the head that compares has a hidden layer of its own"
            )
        classifier.head = nn.Identity()
        self.encoder = classifier
        self.head = nn.Sequential(
            nn.Linear(4 * head.in_features, classifier.width),
            nn.GELU(),
            nn.Linear(classifier.width, head.out_features),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        codes = self.encoder(x.flatten(0, 1), None if mask is None else mask.flatten(0, 1))
        u, v = codes.unflatten(0, (-1, 2)).unbind(1)
        return self.head(torch.cat([u, v, u * v, u - v], dim=1))


class ClassToken(nn.Module):
    """Puts a token of its own before every sequence, for pooling "first".

    Args:
        network: takes x (.., N + 1) and mask (.., N + 1).
        tokens: of the task; the last of the vocabulary is used, which data must not.

    Raises:
        ValueError: at construction when the task's inputs are not tokens.
    """

    def __init__(self, network: nn.Module, tokens: Tokens | None):
        super().__init__()
        if tokens is None:
            raise ValueError("ClassToken: class_token must be False for real inputs (got True)")
        self.network, self.token = network, tokens.vocabulary - 1

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        if mask is not None:
            mask = nn.functional.pad(mask, (1, 0), value=True)
        return self.network(nn.functional.pad(x, (1, 0), value=self.token), mask)


def _check_settings(mixer: str, settings: dict[str, Any]) -> None:
    parameters = inspect.signature(MIXERS[mixer]).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    unknown = sorted(settings.keys() - parameters.keys())
    if unknown:
        raise ValueError(
            f"network_for: {', '.join(unknown)} must be null for {mixer}, which has no such "
            f"setting (got {', '.join(repr(settings[name]) for name in unknown)})"
        )


def _redraw_embedding(classifier: SequenceClassifier, bound: float) -> None:
    embedding = classifier.embedding
    if not isinstance(embedding, nn.Embedding):
        raise ValueError("network_for: embedding_range must be null for real inputs")
    with torch.no_grad():
        embedding.weight.uniform_(-bound, bound)
        if embedding.padding_idx is not None:
            embedding.weight[embedding.padding_idx].zero_()
