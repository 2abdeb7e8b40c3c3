"""The main job: trains a small Paramixer on sequential MNIST, then shows what its operators save.

5,000 real handwritten digits (3,500 / 500 / 1,000), each read pixel by pixel: a sequence of N = 784
grey values. The model is chosen on validation and tested once. Then the mixing chain is timed,
forward and backward, beside the published formulation (gather, multiply, scatter-add). What is left
in runs/quickstart:

    record.json  best.ckpt  curve.png  mixing.png

    python scripts/quickstart.py [--seed 0] [--epochs 32 | --short] [--out runs/quickstart]

Ctrl-C ends it; the record, the curve and the best checkpoint of the finished epochs stay.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

# OpenMP threads that wait for each other spin for milliseconds by default, which slows the training
# down several times on a machine that is doing anything else; so many turns are some microseconds.
# Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import torch
    from benchmarking.cases import ChainCase
    from benchmarking.runner import Runner, make_tasks, records
    from lightning import Trainer, seed_everything
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from paramixer.nn import SequenceClassifier, dense_map
    from paramixer.tasks.sequential_mnist import SIDE
    from paramixer.training import (
        INTERRUPTED,
        BestCheckpoint,
        Curve,
        EpochLines,
        Progress,
        RunRecord,
        data_for,
        evaluate_best,
        fit,
        learner_for,
        plot_mixing,
        quiet_lightning,
        show_record,
        start_record,
    )
    from rich.console import Console
    from rich.table import Table
    from torch import Tensor
except ModuleNotFoundError as error:
    sys.exit(f"quickstart: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"quickstart: {error}")

FILES = ("record.json", "best.ckpt", "curve.png", "mixing.png")
EPOCHS, SHORT_EPOCHS = 32, 3
SHOWN_ROW = 14 * SIDE + 14  # a pixel in the middle of the image
CHAIN = ChainCase((32, 1024, 64), "cdil:3", "float32", "cpu", residual="previous")
FORMS = {"paramixer": "paramixer", "gather-scatter_add": "gather, multiply, scatter-add"}

console = Console()


def main() -> int:
    """Runs the job; the exit status is 0, 1 when nothing was learned, 130 when interrupted."""
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # those of an earlier run would pass for this one's
        (out / name).unlink(missing_ok=True)
    quiet_lightning()
    record = run(settings(arguments.seed, arguments.epochs), out)
    if record is None:
        console.print(f"Interrupted. What there is lies in {out}")
        return INTERRUPTED
    console.print(f"Record, checkpoint and pictures: {out}")
    order_free = record["task"]["floors"]["grey histogram (order-free)"]
    if 100 * record["test"]["interval"][0] <= order_free:
        console.print("The model is no better than the order-free floor: something is broken.")
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trains a small Paramixer on sequential MNIST.")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=EPOCHS)
    length.add_argument(
        "--short",
        action="store_const",
        const=SHORT_EPOCHS,
        dest="epochs",
        help="the whole job in about a minute",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {arguments.epochs}")
    return arguments


def settings(seed: int, epochs: int) -> dict[str, dict[str, Any]]:
    """What is trained, and how; `data` and `model` are settings of scripts/train.py, too.

    Single pixels embedded, learned positions, one Paramixer, one linear layer over all rows.
    """
    return {
        "data": {
            "task": "sequential-mnist",
            "settings": {"distorted": True},
            "batch_size": 32,
            "full_length": True,
            "seed": seed,
        },
        "model": {
            "mixer": "paramixer",
            "width": 16,
            "protocol": "cdil",
            "factors": 10,
            "links": 3,
            "hidden": 8,
            "positions": "learned",
            "pooling": "flatten",
            "norm": True,
            "dropout": 0.1,
            "learning_rate": 4e-3,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup": 0.3,
            "seed": seed,
        },
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "gradient_clip_val": 1.0},
        "averaging": {"decay": 0.99},  # of the weights, over about the last epoch
    }


def run(config: dict[str, dict[str, Any]], out: Path) -> dict[str, Any] | None:
    """Trains, tests once what validation chose, draws and times.

    Validated and kept are running averages of the weights.

    Returns:
        The record, or None when interrupted.
    """
    seed = config["model"]["seed"]
    seed_everything(seed, verbose=False)
    data = data_for(**config["data"])
    module = learner_for(data.task, **config["model"])
    curve, best = Curve(), BestCheckpoint(out, "validation_loss", "min")
    record = RunRecord(out, curve, start_record(data.task, "Paramixer", config, seed))
    progress = Progress(curve) if console.is_terminal else EpochLines(curve)
    trainer = Trainer(
        **config["trainer"],
        callbacks=[EMAWeightAveraging(**config["averaging"]), curve, progress, record, best],
        logger=False,
        enable_progress_bar=console.is_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    if not fit(trainer, module, data):
        record.update(trainer, finished=False)
        return None
    record.update(trainer, finished=True, **evaluate_best(trainer, module, data, best))
    show_record(record.values, console)
    draw_mixing(module.network, data.task.test[0].x, out / "mixing.png")
    record.update(trainer, finished=True, mixing=time_mixing(CHAIN))
    show_mixing(record.values["mixing"])
    return record.values


@torch.inference_mode()
def draw_mixing(model: SequenceClassifier, digit: Tensor, path: Path) -> None:
    """Draws the matrix by which the model mixes one digit (N, 1)."""
    [mixer] = model.mixers
    model.eval()
    x = model.norms[0](model.embed(digit.unsqueeze(0)))
    [product] = dense_map(mixer, x)
    [weights] = mixer.link_weights(x)
    plot_mixing(product, weights, mixer.offsets, SHOWN_ROW, path, digit.view(SIDE, SIDE))


def time_mixing(case: ChainCase) -> list[dict[str, Any]]:
    """Times V_m = S_m V_{m-1} + V_{m-1}, m = 1..M, by this library and as it was published."""
    tasks = make_tasks(case, list(FORMS), case.operations, {})
    Runner(case.device, rounds=9, budget=10).measure(tasks)
    return [row for row in records(tasks) if row["peer"] in FORMS]


def show_mixing(rows: list[dict[str, Any]]) -> None:
    """Prints the times of the two forms of the mixing chain."""
    times = {(row["peer"], row["operation"]): row["median_ms"] for row in rows}
    both = {peer: times[peer, "forward+backward"] for peer in FORMS}
    table = Table("milliseconds (median)", *CHAIN.operations, title=f"(B, N, D) = {CHAIN}")
    for peer, name in FORMS.items():
        table.add_row(name, *(f"{times[peer, operation]:.1f}" for operation in CHAIN.operations))
    console.print(table)
    speed_up = both["gather-scatter_add"] / both["paramixer"]
    console.print(f"Mixing is {speed_up:.1f} times as fast as published.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ImportError as error:
        sys.exit(f"quickstart: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
