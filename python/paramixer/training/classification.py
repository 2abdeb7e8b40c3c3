"""What is learned and how it is measured: loss, accuracy, optimizer and schedule."""

from __future__ import annotations

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]


class Classification(LightningModule):
    """Trains any module that maps sequences x to class scores (B, classes) with cross-entropy.

    For batches of `SplitData`; `Learner` is for what a `Task` asks.

    AdamW under a one-cycle learning rate that spans the whole training. Logged once an epoch:
    `loss` and `accuracy` with the prefix `train_`, `validation_` or `test_`.

    Args:
        model: called as model(x).
        classes: number of classes.
        learning_rate: the largest of the cycle.
        weight_decay: of AdamW.
    """

    def __init__(
        self, model: nn.Module, classes: int, learning_rate: float, weight_decay: float
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="model")
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.validation_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) of the sequences x."""
        return self.model(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch (x, y), y (B,) int64; Lightning steps on it."""
        return self._measure(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures one batch of the validation part."""
        self._measure(batch, "validation", self.validation_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures one batch of the test part."""
        self._measure(batch, "test", self.test_accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its one-cycle schedule, which advances at every step."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _measure(self, batch: Batch, part: str, accuracy: MulticlassAccuracy) -> Tensor:
        x, y = batch
        scores = self(x)
        loss = functional.cross_entropy(scores, y)
        accuracy(scores, y)
        self.log(f"{part}_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        self.log(f"{part}_accuracy", accuracy, on_step=False, on_epoch=True, batch_size=len(y))
        return loss
