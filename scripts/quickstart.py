"""The main job: trains a small Paramixer on sequential MNIST, then shows what its operators save.

5,000 real handwritten digits (3,500 / 500 / 1,000), each read pixel by pixel: a sequence of N = 784
grey values. The model is chosen on validation and tested once. Then the mixing chain is timed,
forward and backward, beside the published formulation (gather, multiply, scatter-add). What is left
in runs/quickstart:

    record.json  best.ckpt  curve.png  mixing.png

    python scripts/quickstart.py [--seed 0] [--epochs 24 | --short] [--out runs/quickstart]

Ctrl-C ends the training early; what has been learned by then is tested, drawn and kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

# OpenMP threads that wait for each other spin for milliseconds by default, which slows the training
# down several times on a machine that is doing anything else; so many turns are some microseconds.
# Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import paramixer
    import torch
    from lightning import Trainer, seed_everything
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
    from paramixer import links, nn
    from paramixer.tasks import sequential_mnist
    from paramixer.training import (
        Classification,
        Curve,
        SplitData,
        fit,
        plot_curve,
        plot_mixing,
        versions,
        wilson_interval,
        write_json,
    )
    from rich.console import Console
    from rich.table import Table
    from torch import Tensor
except ModuleNotFoundError as error:
    sys.exit(f"quickstart: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"quickstart: {error}")

FILES = ("record.json", "best.ckpt", "curve.png", "mixing.png")
EPOCHS, SHORT_EPOCHS = 24, 3
INTERRUPTED = 130  # what a shell reports for Ctrl-C
SHOWN_ROW = 14 * sequential_mnist.SIDE + 14  # a pixel in the middle of the image

console = Console()


@dataclass(frozen=True)
class Config:
    """What is trained, and how."""

    seed: int
    epochs: int
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    averaging: float = 0.99
    width: int = 16
    protocol: str = "cdil"
    factors: int = 10
    links: int = 3
    hidden: int = 8


@dataclass(frozen=True)
class Chain:
    """Sizes of the timed chain: V (B, N, D) through M factors of K links."""

    batch: int = 32
    length: int = 1024
    channels: int = 64
    factors: int = 10
    links: int = 3
    repeats: int = 9


def main() -> int:
    """Runs the job; the exit status is 0, 1 when nothing was learned, 130 when interrupted."""
    arguments = parse_arguments()
    out: Path = arguments.out
    config = Config(arguments.seed, SHORT_EPOCHS if arguments.short else arguments.epochs)
    quiet_lightning()
    seed_everything(config.seed, verbose=False)
    record: dict[str, Any] = {
        "config": asdict(config),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }

    data = SplitData(
        *sequential_mnist.load(), batch_size=config.batch_size, augment=sequential_mnist.distort
    )
    model = build(config)
    module = Classification(
        model, sequential_mnist.CLASSES, config.learning_rate, config.weight_decay
    )
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # those of an earlier run would pass for this one's
        (out / name).unlink(missing_ok=True)
    record["training"] = train(module, data, config, out)
    write_json(record, out / "record.json")

    record["test"] = test(module, data)
    write_json(record, out / "record.json")
    show_accuracy(record)
    draw_mixing(model, data.test[0][0], out / "mixing.png")
    if not record["training"]["finished"]:
        console.print(f"Interrupted. What there is lies in {out}")
        return INTERRUPTED

    record["mixing"] = time_mixing(Chain())
    write_json(record, out / "record.json")
    show_mixing(record["mixing"])
    console.print(f"Record, checkpoint and pictures: {out}")
    order_free = record["test"]["floors"]["grey histogram (order-free)"]
    if record["test"]["interval"][0] <= order_free:
        console.print("The model is no better than the order-free floor: something is broken.")
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains a small Paramixer on sequential MNIST.")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=EPOCHS)
    length.add_argument("--short", action="store_true", help="the whole job in about a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {arguments.epochs}")
    return arguments


def quiet_lightning() -> None:
    """Leaves the screen to the progress bar; data in memory need no worker processes."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*exists and is not empty")
    warnings.filterwarnings("ignore", message=".*LeafSpec")


def build(config: Config) -> nn.SequenceClassifier:
    """Single pixels embedded, learned positions, one Paramixer, one linear layer over all rows."""
    mixer = nn.Paramixer(
        config.width,
        sequential_mnist.LENGTH,
        protocol=config.protocol,
        factors=config.factors,
        links=config.links,
        hidden=config.hidden,
    )
    return nn.SequenceClassifier(
        [mixer],
        width=config.width,
        length=sequential_mnist.LENGTH,
        classes=sequential_mnist.CLASSES,
        features=1,
        positions="learned",
        pooling="flatten",
        norm=True,
    )


def train(module: Classification, data: SplitData, config: Config, out: Path) -> dict[str, Any]:
    """Trains and leaves in `module` the weights of the epoch that was best on validation.

    Validated and kept are running averages of the weights over about the last epoch.
    """
    averages = EMAWeightAveraging(decay=config.averaging)
    best = ModelCheckpoint(
        out, filename="best", monitor="validation_loss", enable_version_counter=False
    )
    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=config.epochs,
        gradient_clip_val=1.0,
        callbacks=[averages, best, curve, RichProgressBar()],
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start, cpu_start = time.perf_counter(), time.process_time()
    finished = fit(trainer, module, data)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if best.best_model_path:
        checkpoint = torch.load(best.best_model_path, weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
    else:  # interrupted within the first epoch
        torch.save({"state_dict": module.state_dict()}, out / "best.ckpt")
    if curve.epochs:
        plot_curve(curve.epochs, out / "curve.png")
    return {
        "finished": finished,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "curve": curve.epochs,
    }


def test(module: Classification, data: SplitData) -> dict[str, Any]:
    """Accuracy on the test part, its 95 % confidence interval, and the floors beside it."""
    tester = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    [metrics] = tester.test(module, datamodule=data, verbose=False)
    count = len(data.test)
    right = round(metrics["test_accuracy"] * count)
    return {
        "accuracy": right / count,
        "interval": wilson_interval(right, count),
        "count": count,
        "floors": sequential_mnist.floors(),
    }


def draw_mixing(model: nn.SequenceClassifier, digit: Tensor, path: Path) -> None:
    """Draws the matrix by which the model mixes one digit (N, 1)."""
    [mixer] = model.mixers
    model.eval()
    with torch.inference_mode():
        x = model.norms[0](model.embed(digit.unsqueeze(0)))
        [product] = nn.dense_map(mixer, x)
        [weights] = mixer.link_weights(x)
    image = digit.view(sequential_mnist.SIDE, sequential_mnist.SIDE)
    plot_mixing(product, weights, mixer.offsets, SHOWN_ROW, path, image)


def time_mixing(chain: Chain) -> dict[str, Any]:
    """Times V_m = S_m V_{m-1} + V_{m-1}, m = 1..M, by `paramixer.mix` and as it was published."""
    offsets = links.cdil(chain.length, chain.factors, chain.links)
    forms = {
        "paramixer": [partial(paramixer.mix, offsets=links_of_one) for links_of_one in offsets],
        "published": [published_mix(chain.length, links_of_one) for links_of_one in offsets],
    }
    rows = (chain.batch, chain.length)
    weight = torch.randn(chain.factors, *rows, chain.links, requires_grad=True)
    value = torch.randn(*rows, chain.channels, requires_grad=True)
    grad = torch.randn(*rows, chain.channels)

    def run(mixes: list[Callable[[Tensor, Tensor], Tensor]]) -> tuple[Tensor, float, float]:
        start = time.perf_counter()
        state = value
        for factor_weight, mix in zip(weight.unbind(), mixes, strict=True):
            state = mix(factor_weight, state) + state
        middle = time.perf_counter()
        torch.autograd.grad(state, (weight, value), grad)
        return state.detach(), middle - start, time.perf_counter() - middle

    warm = {name: run(mixes)[0] for name, mixes in forms.items()}
    difference = (warm["paramixer"] - warm["published"]).norm() / warm["published"].norm()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(chain.repeats):  # in turns, so that a disturbance meets both
        for name, mixes in forms.items():
            seconds[name].append(run(mixes)[1:])
    medians = {
        name: {
            "forward": statistics.median(forward for forward, _ in pairs) * 1e3,
            "backward": statistics.median(backward for _, backward in pairs) * 1e3,
            "both": statistics.median(map(sum, pairs)) * 1e3,
        }
        for name, pairs in seconds.items()
    }
    return {
        "chain": asdict(chain),
        "median_milliseconds": medians,
        "speed_up": medians["published"]["both"] / medians["paramixer"]["both"],
        "relative_difference": float(difference),
    }


def published_mix(length: int, offsets: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """One factor as published: gather the value of every link, multiply, scatter-add to the rows.

    The index tables are made once, outside the timing.
    """
    position = torch.arange(length)
    columns = ((position.unsqueeze(1) + torch.tensor(offsets)) % length).flatten()
    rows = position.repeat_interleave(len(offsets)).view(1, -1, 1)

    def mix(weight: Tensor, value: Tensor) -> Tensor:
        messages = value.index_select(1, columns) * weight.flatten(1).unsqueeze(2)
        return torch.zeros_like(value).scatter_add(1, rows.expand_as(messages), messages)

    return mix


def show_accuracy(record: dict[str, Any]) -> None:
    """Prints the test accuracy beside the floors, and what it cost."""
    result, training = record["test"], record["training"]
    low, high = result["interval"]
    table = Table(title=f"accuracy on the {result['count']} test digits", show_header=False)
    for name, accuracy in result["floors"].items():
        table.add_row(name, f"{accuracy:.1%}")
    table.add_row(
        "Paramixer",
        f"{result['accuracy']:.1%}  (95 % interval {low:.1%} to {high:.1%})",
        style="bold",
    )
    console.print(table)
    console.print(
        f"{training['parameters']:,} parameters, {len(training['curve'])} epochs, trained in "
        f"{training['seconds']:.0f} s on {record['threads']} threads"
    )


def show_mixing(mixing: dict[str, Any]) -> None:
    """Prints the times of the two forms of the mixing chain."""
    chain = mixing["chain"]
    table = Table(
        "milliseconds (median)",
        "forward",
        "backward",
        "both",
        title=f"{chain['factors']} factors of {chain['links']} links, (B, N, D) = "
        f"({chain['batch']}, {chain['length']}, {chain['channels']})",
    )
    names = {"paramixer": "paramixer.mix", "published": "gather, multiply, scatter-add"}
    for form, times in mixing["median_milliseconds"].items():
        table.add_row(
            names[form], *(f"{times[part]:.1f}" for part in ("forward", "backward", "both"))
        )
    console.print(table)
    console.print(f"Mixing is {mixing['speed_up']:.1f} times as fast as published.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ImportError as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
