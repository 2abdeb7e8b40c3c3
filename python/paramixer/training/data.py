"""What is learned from: three parts of a data set, and how batches are drawn from them."""

from __future__ import annotations

from collections.abc import Callable

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class SplitData(LightningDataModule):
    """Batches (x, y) of a training, a validation and a test part; `TaskData` serves a `Task`.

    Args:
        train: drawn in random order, the last batch may be smaller.
        validation: read in order, every sample once.
        test: read in order, every sample once.
        batch_size: samples in a batch.
        augment: applied to x of every training batch, on the device that trains.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset,
        test: Dataset,
        batch_size: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.test = train, validation, test
        self.batch_size = batch_size
        self.augment = augment

    def train_dataloader(self) -> DataLoader:
        """Batches of the training part."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation part."""
        return DataLoader(self.validation, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test part."""
        return DataLoader(self.test, self.batch_size)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Augments x while training."""
        x, y = batch
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            x = self.augment(x)
        return x, y
