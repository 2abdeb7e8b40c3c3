"""Running a training: the curve it leaves, and what happens when it is interrupted."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, RichProgressBar

INTERRUPTED = 130  # the exit status that a shell reports for Ctrl-C


class Curve(Callback):
    """Collects the logged metrics of every finished epoch, with the seconds since the start.

    A training that goes on from a checkpoint goes on with its curve and its seconds.

    Attributes:
        epochs: one dict an epoch: "epoch" (from 1), "seconds", "cpu_seconds" (of this process),
            "samples_per_second" (of training alone, over all processes) and every metric by its
            logged name.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._before = self._cpu_before = 0.0  # seconds of the runs that this one continues
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._samples, self._batches, self._trained = 0, 0, 0.0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._before + time.perf_counter() - self._start

    @property
    def cpu_seconds(self) -> float:
        """What this process has computed since the start; other load does not matter to it."""
        return self._cpu_before + time.process_time() - self._cpu_start

    @property
    def samples_per_second(self) -> float:
        """Of the present epoch."""
        return self._samples / self._trained if self._trained > 0 else 0.0

    @property
    def batches_per_second(self) -> float:
        """Of the present epoch."""
        return self._batches / self._trained if self._trained > 0 else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._begin_epoch()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts measuring speed."""
        self._begin_epoch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the samples; y is the last of every batch."""
        self._samples += len(batch[-1]) * trainer.world_size
        self._batches += 1
        self._trained = time.perf_counter() - self._epoch_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what the epoch logged."""
        metrics = {n: round(float(value), 5) for n, value in trainer.callback_metrics.items()}
        self.epochs.append(
            {
                "epoch": trainer.current_epoch + 1,
                "seconds": round(self.seconds, 2),
                "cpu_seconds": round(self.cpu_seconds, 2),
                "samples_per_second": round(self.samples_per_second, 1),
                **metrics,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        spent = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return {"epochs": self.epochs, **spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the curve of a checkpoint."""
        self.epochs = state_dict["epochs"]
        self._before, self._cpu_before = state_dict["seconds"], state_dict["cpu_seconds"]

    def _begin_epoch(self) -> None:
        self._samples, self._batches, self._trained = 0, 0, 0.0
        self._epoch_start = time.perf_counter()


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, of the epoch that was best on validation.

    Args:
        folder: of the run.
        monitor: the logged metric that decides.
        mode: "max" or "min".
    """

    def __init__(self, folder: Path, monitor: str = "validation_accuracy", mode: str = "max"):
        super().__init__(
            folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )


class LastCheckpoint(Checkpoint):
    """Keeps a checkpoint from which the training can go on as if it had never stopped.

    It is written after every epoch, every so many seconds in its midst, and when the user
    interrupts: Ctrl-C ends the training after the present step, or after the present validation; a
    second Ctrl-C ends it at once. A reader never sees half of it.

    Args:
        path: of the file.
        seconds: between two in the midst of an epoch.
    """

    def __init__(self, path: Path, seconds: float):
        self.path, self._seconds = path, seconds
        self._written = time.monotonic()
        self._interrupted = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C, which `fit` gives back."""
        self._written = time.monotonic()
        signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes where it is time, but not before the validation that belongs to the epoch."""
        due = self._interrupted or time.monotonic() - self._written > self._seconds
        due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished epoch."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.path)
        self._written = time.monotonic()
        if trainer.strategy.reduce_boolean_decision(self._interrupted, all=False):
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True


class Progress(RichProgressBar):
    """A bar for the epoch; beside it samples a second and the time left of the whole training.

    Args:
        curve: measures the speed.
    """

    def __init__(self, curve: Curve):
        super().__init__()
        self._curve = curve

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics["samples/s"] = round(self._curve.samples_per_second)
        metrics["left"] = time_left(trainer, self._curve)
        return metrics


class EpochLines(Callback):
    """Prints a line an epoch, where there is no terminal for a bar.

    Args:
        curve: what is printed.
    """

    def __init__(self, curve: Curve):
        self._curve = curve

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch that `curve`, which must come before in the list, has noted."""
        if trainer.is_global_zero:
            epoch = self._curve.epochs[-1]
            values = "  ".join(f"{name} {value:g}" for name, value in epoch.items())
            print(f"{values}  left {time_left(trainer, self._curve)}", flush=True)


def time_left(trainer: Trainer, curve: Curve) -> str:
    """How long the rest of the training takes at the speed of the present epoch, as h:mm:ss."""
    if not curve.batches_per_second or trainer.max_epochs is None or trainer.max_epochs < 0:
        return "?"
    batches = trainer.max_epochs * trainer.num_training_batches - trainer.fit_loop.total_batch_idx
    minutes, seconds = divmod(round(max(0, batches - 1) / curve.batches_per_second), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def quiet_lightning() -> None:
    """Leaves the screen to the progress bar and the results."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*exists and is not empty", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")


def fit(
    trainer: Trainer,
    module: LightningModule,
    data: LightningDataModule,
    checkpoint: Path | None = None,
) -> bool:
    """Trains; an interruption from the keyboard ends the training, not the program.

    Args:
        trainer: of Lightning.
        module: what is trained.
        data: what from.
        checkpoint: where to go on.

    Returns:
        True when every epoch was trained, False when the user interrupted.
    """
    handler: Any = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return False
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    return True
