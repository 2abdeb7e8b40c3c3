"""Draws the matrix that every system of docs/ applies, each from a model trained for this picture.

    python scripts/draw_systems.py docs [--only paramixer monarch]

Networks of one mixer of width 32 and one feed-forward layer learn `mini-digits`: 8 x 8 pixels, read
as a sequence of N = 64. About half a minute each on one thread. What is drawn comes from one digit
of the test part: A, one row of A as the 8 x 8 picture that it weighs, and its singular values.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

try:
    import paramixer
    import torch
    from lightning import Trainer, seed_everything
    from matplotlib.figure import Figure
    from paramixer import nn, tasks
    from paramixer.tasks.task import Task
    from paramixer.training import Learner, TaskData, evaluate, network_for
    from torch import Tensor
except ModuleNotFoundError as error:
    sys.exit(f"draw_systems: {error.name} is missing. Run: pip install paramixer[train]")

SIDE, GREYS, CLASSES = 8, 17, 10
LENGTH = SIDE * SIDE
EPOCHS, BATCH, LEARNING_RATE, SEED = 30, 32, 3e-3, 0
ITERATIONS = 3000  # of the factorization
WIDTH = 32
DIGIT = 0  # of the test part
ROW = LENGTH // 2 + SIDE // 2  # a pixel in the middle
LEAST_SINGULAR_VALUE = 1e-6  # of the largest; what is below is rounding
CLIPPED = 0.995  # quantile of |A| from which on the colour stays the same

Maps = dict[str, Tensor]  # what is drawn, (N, N) or (m, N), by its title


class Picture(NamedTuple):
    """What the maps belong to, N pixels."""

    title: str
    pixels: Tensor


class LamaOfPixels(torch.nn.Module):
    """`LamaClassifier` of grey values as tokens."""

    def __init__(self, **options: Any):
        super().__init__()
        self.classifier = nn.LamaClassifier(
            GREYS, CLASSES, width=WIDTH, hidden=WIDTH // 2, head_hidden=64, dropout=0.1, **options
        )

    def tokens(self, x: Tensor) -> Tensor:
        """(B, N, 1) in [0, 1] to (B, N)."""
        return (x * (GREYS - 1)).round().long().squeeze(2)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, 1) to (B, classes)."""
        return self.classifier(self.tokens(x), mask)


def main() -> None:
    """Trains and draws what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), metavar="PAGE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # rows here are so short that threads would mostly wait
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    task = tasks.load("mini-digits")
    for page in arguments.only:
        picture, maps = PAGES[page](task)
        draw(arguments.folder / f"{page}.png", picture, maps)


def train(name: str, task: Task, make: Callable[[], torch.nn.Module]) -> tuple[Any, str]:
    """A network that has learned the task, and a title that says how well."""
    seed_everything(SEED, verbose=False)
    learner = Learner(
        make(),
        task.output,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.1,
        seed=SEED,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TaskData(task, BATCH, seed=SEED)
    begin = time.process_time()
    trainer.fit(learner, datamodule=data)
    seconds = time.process_time() - begin
    accuracy = evaluate(trainer, learner, data)["accuracy"]
    print(
        f"{name}: {100 * accuracy:.1f} % of the test part, trained in {seconds:.0f} s", flush=True
    )
    return learner.network.eval(), f"{name} ({100 * accuracy:.1f} %)"


def digit(task: Task) -> Tensor:
    """The one that is drawn, (1, N, 1)."""
    return task.test[DIGIT].x.unsqueeze(0)


def mixers(
    *shown: tuple[str, str, dict[str, Any], Callable[..., Maps]],
) -> Callable[[Task], tuple[Picture, Maps]]:
    """A page of mixers, each with a title, its name and options, and what is drawn of it."""

    def trained(task: Task) -> tuple[Picture, Maps]:
        maps: Maps = {}
        for name, mixer, options, of in shown:
            network, title = train(name, task, lambda m=mixer, o=options: pixel_network(task, m, o))
            maps |= {f"{title}{more}": a for more, a in of(*mixed_in(network, digit(task))).items()}
        return Picture("input", digit(task)), maps

    return trained


def pixel_network(task: Task, mixer: str, options: dict[str, Any]) -> torch.nn.Module:
    """One mixer and one feed-forward layer, normalised and residual, and the mean over rows."""
    settings = {name: value for name, value in options.items() if name != "width"}
    return network_for(
        task,
        mixer=mixer,
        width=options.get("width", WIDTH),
        options=settings,
        feed_forward=2 * WIDTH,
        norm=True,
        positions="learned",
        dropout=0.1,
    )


@torch.no_grad()
def mixed_in(network: torch.nn.Module, x: Tensor) -> tuple[torch.nn.Module, Tensor]:
    """The mixer of a network and what it is given when the network is given x."""
    mixer, given = network.mixers[0], []
    hook = mixer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    network(x)
    hook.remove()
    return mixer, given[0]


@torch.no_grad()
def heads(*numbers: int, called: str = "head") -> Callable[[torch.nn.Module, Tensor], Maps]:
    """The matrices of these heads; of the only one without its number."""

    def of(mixer: torch.nn.Module, x: Tensor) -> Maps:
        dense = nn.dense_map(mixer, x)[0].reshape(-1, LENGTH, LENGTH).detach()
        names = [f"\n{called} {n} of {len(dense)}" if len(dense) > 1 else "" for n in numbers]
        return {name: dense[n - 1] for name, n in zip(names, numbers, strict=True)}

    return of


def with_and_without_residual(mixer: torch.nn.Module, x: Tensor) -> Maps:
    """V_M = A V_0, and the product of the factors alone."""
    names = {f"\n{mixer.factors} factors with residual": True, "\ntheir product alone": False}
    return {name: nn.dense_map(mixer, x, residual=r)[0].detach() for name, r in names.items()}


def influences(mixer: torch.nn.Module, x: Tensor) -> Maps:
    """How much each row depends on each other, after some and after all blocks."""
    counts = (1, len(mixer.blocks) // 2, len(mixer.blocks))
    return {f"\n{n} of {counts[-1]} blocks": influence(mixer.blocks[:n], x) for n in counts}


def influence(blocks: Iterable[torch.nn.Module], x: Tensor) -> Tensor:
    """(N, N), the Frobenius norm of the derivative of row i by row j."""

    def run(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, None, None)
        return x

    jacobian = torch.autograd.functional.jacobian(run, x, vectorize=True).squeeze((0, 3))
    return jacobian.norm(dim=(1, 3))


def lama(task: Task) -> tuple[Picture, Maps]:
    """The attention of two poolings."""
    maps: Maps = {}
    for temperature in (1.0, 0.25):
        make = lambda t=temperature: LamaOfPixels(heads=4, temperature=t)  # noqa: E731
        network, title = train(f"T = {temperature:g}", task, make)
        with torch.no_grad():
            _, attention = network.classifier.pool(network.tokens(digit(task)))
        maps[f"{title}\n4 heads; head 1 below"] = attention[0]
    return Picture("input", digit(task)), maps


def factorization(task: Task) -> tuple[Picture, Maps]:
    """The covariances of the pixels of the training part."""
    pixels = torch.stack([sample.x for sample in task.train]).squeeze(2).double()
    matrix = pixels.T.cov()
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more iterations would lower the error
        found = paramixer.factorize(matrix, iterations=ITERATIONS)
    seconds = time.process_time() - begin
    error = found.error / matrix.norm()
    rank = found.numbers // (2 * LENGTH)
    truncated = torch.linalg.svdvals(matrix)[rank:].norm() / matrix.norm()
    print(f"factorization: relative error {error:.4f} in {seconds:.0f} s", flush=True)
    first = paramixer.mix(found.weights[:, 0], torch.eye(LENGTH).double(), found.offsets[0])
    title = f"$S_6 .. S_1$, {found.numbers:,} numbers\nerror {error:.3f}, SVD {truncated:.3f}"
    maps = {"A: covariances of pixels": matrix, title: found.to_dense(), "$S_1$": first}
    return Picture("mean of the pixels", pixels.mean(0)), maps


ALL_HEADS = heads(1, 2)
TWO = {"heads": 2}
PAGES: dict[str, Callable[[Task], tuple[Picture, Maps]]] = {
    "paramixer": mixers(
        ("Chord, K = 7", "paramixer", {"hidden": 16}, heads(1)),
        ("CDIL, K = 3", "paramixer", {"hidden": 16, "protocol": "cdil"}, heads(1)),
        ("CDIL, K = 9", "paramixer", {"hidden": 16, "protocol": "cdil", "links": 9}, heads(1)),
    ),
    "psf-attention": mixers(
        ("PSF-Attn", "psf-attention", {"hidden": 16}, with_and_without_residual)
    ),
    "chord-mixer": mixers(("ChordMixer", "chord-mixer", {"width": 35}, influences)),
    "sparse-factorization": factorization,
    "lama": lama,
    "linear-attention": mixers(
        ("elu + 1", "linear-attention", TWO, heads(1)),
        ("gated kernel", "linear-attention", TWO | {"feature_map": "gated"}, heads(1)),
        ("SimpleTRON", "simpletron", TWO, heads(1)),
    ),
    "monarch": mixers(("Monarch", "monarch", TWO, ALL_HEADS)),
    "opponents": mixers(
        ("softmax", "softmax-attention", TWO, heads(1)),
        ("Linformer, r = 16", "linformer", TWO | {"rank": 16}, heads(1)),
        ("Performer", "linear-attention", TWO | {"feature_map": "favor"}, heads(1)),
        ("local, w = 8", "local-attention", TWO | {"window": 8}, heads(1)),
        ("Nyströmformer, m = 16", "nystromformer", TWO | {"landmarks": 16}, heads(1)),
        ("S4D", "s4d", {}, heads(1, called="channel")),
    ),
}


def draw(path: Path, picture: Picture, maps: Maps) -> None:
    """Every matrix and below it one of its rows; a picture and all singular values beside them."""
    figure = Figure(figsize=(2.6 * (len(maps) + 1), 5.2), layout="constrained")
    axes = figure.subplots(2, len(maps) + 1)
    for (title, matrix), (above, below) in zip(maps.items(), axes.T[:-1], strict=True):
        square = len(matrix) == LENGTH
        row = ROW if square else 0
        draw_signed(above, matrix, title)
        draw_signed(below, matrix[row].view(SIDE, SIDE), f"row {row}" if square else "head 1")
        if square:
            above.axhline(row, color="black", linewidth=0.5, linestyle=":")
            mark(below)
    input_axes, values_axes = axes.T[-1]
    input_axes.imshow(picture.pixels.view(SIDE, SIDE).numpy(), cmap="gray_r")
    input_axes.set(title=picture.title, xticks=[], yticks=[])
    if any(len(matrix) == LENGTH for matrix in maps.values()):
        mark(input_axes)
    for number, matrix in enumerate(maps.values(), 1):
        values = torch.linalg.svdvals(matrix.double())
        values = values[values > LEAST_SINGULAR_VALUE * values[0]] / values[0]
        values_axes.semilogy(
            range(1, len(values) + 1), values.numpy(), ".-", markersize=3, label=number
        )
    values_axes.set_title("singular values", fontsize=9)
    values_axes.set(xlim=(0, LENGTH + 1), ylim=(LEAST_SINGULAR_VALUE, 2))
    values_axes.legend(fontsize=7, title="column", title_fontsize=7)
    values_axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)


def draw_signed(axes: Any, matrix: Tensor, title: str) -> None:
    """Zero in white, positive in red, negative in blue."""
    bound = float(matrix.abs().flatten().quantile(CLIPPED)) or float(matrix.abs().max()) or 1.0
    axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.set_box_aspect(1)


def mark(axes: Any) -> None:
    """A ring around the pixel whose row is drawn."""
    place = {"x": ROW % SIDE, "y": ROW // SIDE}
    axes.plot(*place.values(), "o", markersize=9, fillstyle="none", color="lime")


if __name__ == "__main__":
    main()
