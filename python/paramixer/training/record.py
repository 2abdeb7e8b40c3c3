"""What a run leaves behind, and what several of them say together."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from paramixer.tasks.task import Task
from paramixer.training.fit import BestCheckpoint, Curve
from paramixer.training.report import plot_curve, versions, wilson_interval, write_json

RECORD, CURVE = "record.json", "curve.png"
_KIBIBYTE = 1024
_DRAW_SECONDS = 10.0  # an epoch of a small task takes less than drawing it


class RunRecord(Callback):
    """Writes `record.json` of a run after every epoch, and `curve.png` now and then and at its end.

    Attributes:
        values: what the record says.

    Args:
        folder: of the run.
        curve: what is drawn; it must come before in the list of callbacks.
        values: what is known before the training.
    """

    def __init__(self, folder: Path, curve: Curve, values: dict[str, Any]):
        self.folder, self.curve, self.values = folder, curve, values
        self._drawn = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what only the started trainer knows, even if no step is left to train."""
        self.values |= {
            "device": device_of(trainer),
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the record, and draws where that was long ago."""
        self.update(trainer, finished=False)
        if time.monotonic() - self._drawn > _DRAW_SECONDS:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws what there is."""
        self._draw(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Draws the epochs before an interruption."""
        if self.curve.epochs:
            self._draw(trainer)

    def update(self, trainer: Trainer, finished: bool, **more: Any) -> None:
        """Writes the record with what has been learned about the training, and more."""
        epochs = self.curve.epochs
        speeds = [epoch["samples_per_second"] for epoch in epochs]
        self.values["training"] = {
            "finished": finished,
            "steps": trainer.global_step,
            "seconds": round(epochs[-1]["seconds"], 1) if epochs else 0.0,
            "cpu_seconds": round(epochs[-1]["cpu_seconds"], 1) if epochs else 0.0,
            "samples_per_second": statistics.median(speeds) if speeds else None,
            "peak_memory_bytes": peak_memory(),
            "epochs": epochs,
        }
        self.values |= more
        if trainer.is_global_zero:
            write_json(self.values, self.folder / RECORD)

    def _draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            plot_curve(self.curve.epochs, self.folder / CURVE)
        self._drawn = time.monotonic()


def describe_task(task: Task) -> dict[str, Any]:
    """What a record says of a task."""
    return {
        "name": task.name,
        "variant": task.variant,
        "length": task.length,
        "floors": dict(task.floors),
        "published": [row._asdict() for row in task.published],
        "comparable_to": task.comparable_to,
        "validation_is_test": task.validation_is_test,
        "samples": [len(part) for part in task.parts],
        "facts": dict(task.facts),
    }


def evaluate(
    trainer: Trainer, module: LightningModule, data: LightningDataModule
) -> dict[str, Any]:
    """Evaluates the test part with the weights that the module has.

    Returns:
        accuracy, its 95 % interval (Wilson), of how many answers, loss, and roc_auc if measured.
    """
    [metrics] = trainer.test(module, datamodule=data, verbose=False)
    values = {name.removeprefix("test_"): value for name, value in metrics.items()}
    count = round(values["count"])
    right = round(values["accuracy"] * count)
    return values | {
        "accuracy": right / count,
        "interval": wilson_interval(right, count),
        "count": count,
    }


def evaluate_best(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, best: BestCheckpoint
) -> dict[str, Any]:
    """Gives the module the weights that validation chose and evaluates the test part with them.

    Returns:
        chosen: the epoch, and by which metric; test: see `evaluate`.
    """
    kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    chosen = {"epoch": kept["epoch"] + 1, "by": best.monitor}
    return {"chosen": chosen, "test": evaluate(trainer, module, data)}


def read_records(places: Iterable[Path]) -> list[dict[str, Any]]:
    """The records in these folders and those inside them, in the order of their paths."""
    paths = sorted({path for place in places for path in place.rglob(RECORD)})
    return [json.loads(path.read_text()) | {"path": str(path)} for path in paths]


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of the accuracies that several seeds reached."""
    accuracies = [record["test"]["accuracy"] for record in records]
    return {
        "seeds": [record["seed"] for record in records],
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    }


class Reference(NamedTuple):
    """What a result is held against: a floor, or a published result of the same variant or not.

    Attributes:
        name: of the method.
        accuracy: in percent.
        remark: what it is.
        comparable: whether it is a floor or of the run's own variant.
    """

    name: str
    accuracy: float
    remark: str
    comparable: bool


def reference_rows(task: dict[str, Any]) -> list[Reference]:
    """Floors and published results of a record's task; an error becomes an accuracy."""
    rows = [Reference(name, value, "floor", True) for name, value in task["floors"].items()]
    for row in task["published"]:
        same = row["variant"] == task["variant"]
        remark = row["source"] if same else f"other variant ({row['variant']}): {row['source']}"
        accuracy = 100 - row["value"] if row["metric"] == "error" else row["value"]
        rows.append(Reference(row["model"], accuracy, remark, same))
    return rows


def show_record(record: dict[str, Any], console: Console) -> None:
    """Prints the test accuracy between floors and published results, and what it cost."""
    test, training, task = record["test"], record["training"], record["task"]
    low, high = test["interval"]
    table = Table(title=f"{task['name']} ({task['variant']}), N = {task['length']}: test accuracy")
    table.add_column("method")
    table.add_column("%", justify="right")
    table.add_column("remark")
    rows = [(row.name, row.accuracy, row.remark, "") for row in reference_rows(task)]
    remark = f"95 % interval {100 * low:.2f} to {100 * high:.2f}, {test['count']:,} answers"
    rows.append((f"{record['model']} (this run)", 100 * test["accuracy"], remark, "bold"))
    for name, accuracy, remark, style in sorted(rows, key=lambda row: row[1]):
        table.add_row(name, f"{accuracy:.2f}", remark, style=style)
    console.print(table)
    if task["validation_is_test"]:
        console.print("Validation is the test part here: this number is no estimate for new data.")
    if "roc_auc" in test:
        console.print(f"area under the ROC curve {100 * test['roc_auc']:.2f} %")
    console.print(
        f"{record['parameters']:,} parameters, best of {len(training['epochs'])} epochs: "
        f"{record['chosen']['epoch']}, {training['seconds']:.0f} s, "
        f"{training['samples_per_second']:.1f} samples/s"
    )


def git_revision() -> str:
    """Of the present folder's repository, with "+" where files have changed; "" outside of one."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"])
    try:
        revision, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision + ("+" if changes else "")


def device_of(trainer: Trainer) -> dict[str, Any]:
    """What trains: kind and name, processes, threads of each, precision."""
    device = trainer.strategy.root_device
    cuda = device.type == "cuda"
    return {
        "kind": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
    }


def peak_memory() -> int:
    """Bytes: of tensors on the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE


def start_record(task: Task, model: str, config: dict[str, Any], seed: int) -> dict[str, Any]:
    """What is known before the training."""
    return {
        "task": describe_task(task),
        "model": model,
        "seed": seed,
        "config": config,
        "git": git_revision(),
        "versions": versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
