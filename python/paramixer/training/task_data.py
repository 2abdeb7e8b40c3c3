"""The parts of a task as batches, for one process or several."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from paramixer import tasks
from paramixer._checks import check_size
from paramixer.tasks.task import Batch, Collate, Part, Sample, Task
from paramixer.training.batches import Batches, Plan, ResumableLoader
from paramixer.training.noise import noise


class TaskData(LightningDataModule):
    """Batches of any `Task`; see `Batches` for which samples they hold.

    What a batch holds depends on the seed and on nothing else: not on the number of processes, of
    which each reads its share of every batch, and not on the number of workers. All shares of a
    batch have the same N, so that mixers whose ring spans N compute the same in one process as in
    several. A batch without padding has no mask.

    Args:
        task: what is read.
        batch_size: samples of a training batch, over all processes.
        evaluation_batch_size: samples of a validation or test batch; default `batch_size`. Where
            lengths differ, padding and with it the result of such mixers depends on it.
        workers: processes that read; 0 reads in the training process.
        full_length: whether every batch has the length of the task, as heads of all positions need.
        seed: of the order of training samples.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is below 1; in a run, the trainer has `use_distributed_sampler`, which
            would replace the shares, or a part has fewer samples than there are processes.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        *,
        evaluation_batch_size: int | None = None,
        workers: int = 0,
        full_length: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.task = task
        self.batch_size = check_size("TaskData", "batch_size", batch_size)
        self.evaluation_batch_size = check_size(
            "TaskData", "evaluation_batch_size", evaluation_batch_size or batch_size
        )
        self.workers, self.full_length, self.seed = workers, full_length, seed
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, int] = {}

    def train_dataloader(self) -> DataLoader:
        """Batches of the training part, in an order of every epoch's own."""
        self._train_loader = self._loader(self.task.train, self.batch_size, self.seed)
        if self._resumed:
            self._train_loader.load_state_dict(self._resumed)
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """Where the training is. Lightning restores its loaders' states too late for schedules."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next training loader go on there."""
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation part, every sample once."""
        return self._loader(self.task.validation, self.evaluation_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test part, every sample once."""
        return self._loader(self.task.test, self.evaluation_batch_size)

    def _loader(self, part: Part, batch_size: int, seed: int | None = None) -> ResumableLoader:
        share = partial(Batches, part.lengths, batch_size, seed=seed)
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            batches = share()
        elif trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "TaskData: the trainer must have use_distributed_sampler=False (got True): every "
                "process reads its share already"
            )
        else:
            batches = share(rank=trainer.global_rank, processes=trainer.world_size)
        collate = self.task.collate
        if self.full_length:
            collate = replace(collate, pad_to=self.task.length)
        return ResumableLoader(
            _Assembled(part, collate),
            batches,
            num_workers=self.workers,
            worker_init_fn=_leave_interrupts,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def data_for(
    task: str,
    batch_size: int,
    *,
    settings: dict[str, Any] | None = None,
    evaluation_batch_size: int | None = None,
    workers: int = 0,
    full_length: bool = False,
    seed: int = 0,
) -> TaskData:
    """The task of a name as batches.

    Args:
        task: one of `paramixer.tasks.names()`, or "noise".
        batch_size: samples of a training batch, over all processes.
        settings: of the task, by name, e.g. length or folder.
        evaluation_batch_size: samples of a validation or test batch; default `batch_size`.
        workers: processes that read.
        full_length: whether every batch has the length of the task.
        seed: of the order of training samples.

    Raises:
        ValueError: there is no such task, a setting is unknown, missing or out of its range.
        OSError: the data are not there; the message says where they were looked for.
        ImportError: the package that brings the data is missing.
    """
    return TaskData(
        _load(task, settings or {}),
        batch_size,
        evaluation_batch_size=evaluation_batch_size,
        workers=workers,
        full_length=full_length,
        seed=seed,
    )


def _load(task: str, settings: dict[str, Any]) -> Task:
    make = noise if task == "noise" else partial(tasks.load, task)
    if "variant" in settings:  # of which the command line makes a number where it can
        settings = settings | {"variant": str(settings["variant"])}
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"data.settings of task {task}: {error}") from error


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process; the training process decides when reading ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Assembled(Dataset):
    """Reads and collates the samples of a plan."""

    def __init__(self, part: Part, collate: Collate):
        self._part, self._collate = part, collate

    def __getitem__(self, plan: Plan) -> Batch:
        if hasattr(self._part, "set_epoch"):
            self._part.set_epoch(plan.epoch)
        length = self._collate.pad_to or plan.length
        batch = replace(self._collate, pad_to=length)(self._samples(plan.indices))
        if batch.mask is not None and bool(batch.mask.all()):
            return batch._replace(mask=None)
        return batch

    def _samples(self, indices: Sequence[int]) -> list[Sample]:
        if hasattr(self._part, "__getitems__"):  # as a DataLoader would ask
            return self._part.__getitems__(indices)
        return [self._part[i] for i in indices]
