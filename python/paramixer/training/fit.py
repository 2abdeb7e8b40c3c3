"""Running a training: the curve it leaves, and what happens when it is interrupted."""

from __future__ import annotations

import signal
import time
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer


class Curve(Callback):
    """Collects the logged metrics of every finished epoch, with the seconds since the start.

    Attributes:
        epochs: one dict an epoch: "epoch" (from 1), "seconds" and every metric by its logged name.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what the epoch logged."""
        metrics = {n: round(float(value), 5) for n, value in trainer.callback_metrics.items()}
        seconds = time.perf_counter() - self._start
        self.epochs.append(
            {"epoch": trainer.current_epoch + 1, "seconds": round(seconds, 2), **metrics}
        )


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> bool:
    """Trains; an interruption from the keyboard ends the training, not the program.

    Returns:
        True when every epoch was trained, False when the user interrupted.
    """
    handler: Any = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:  # what Lightning makes of a KeyboardInterrupt
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return False
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    return True
