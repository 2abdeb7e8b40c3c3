"""How any task is learned and judged: losses, measures, optimizer and schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import BinaryAUROC

from paramixer._checks import check_choice
from paramixer.nn.classifier import LearnedPositions
from paramixer.tasks.draws import bits
from paramixer.tasks.task import Batch, Classes, Regression

SCHEDULES = ("constant", "cosine")
PARTS = ("train", "validation", "test")

_STEP_STREAM = 2**64 - 4  # no data set has as many parts


class Learner(LightningModule):
    """Trains a network for a task's output with AdamW and measures it.

    Classes are learned with cross-entropy, values with squared error. Logged once an epoch, each
    with the prefix `train_`, `validation_` or `test_`: `loss`; `accuracy`, the share of right
    answers, where an answer is a sample or, in tasks that ask for several classes a sample, each of
    these; `count` of the test's answers; and `roc_auc` where wanted. All are over every sample
    once, with any number of processes.

    The gradient is that of the mean over the whole batch, also where the processes' shares differ.
    Random numbers of a training step depend on seed, step and process alone: a run that goes on
    from a checkpoint draws what an uninterrupted one draws.

    Args:
        network: called as network(x, mask), gives (B, classes), (B, positions, classes) or, for
            values, (B, 1).
        output: what the task asks for.
        learning_rate: the largest.
        weight_decay: of all weights but biases, norms, embeddings and positions.
        schedule: "constant", or "cosine", which ends at zero with the last step.
        warmup: share of all steps in which the learning rate rises from zero.
        roc_auc: whether validation and test measure the area under the ROC curve; 2 classes.
        seed: of the random numbers of the training steps.
        compile: whether the network runs through `torch.compile`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        output: Classes | Regression,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        warmup: float = 0.0,
        roc_auc: bool = False,
        seed: int = 0,
        compile: bool = False,
    ):
        super().__init__()
        check_choice("Learner", "schedule", schedule, SCHEDULES)
        if not 0 <= warmup < 1:
            raise ValueError(f"Learner: warmup must be at least 0 and below 1 (got {warmup})")
        if roc_auc and not (isinstance(output, Classes) and output.count == 2):
            raise ValueError(f"Learner: roc_auc must be False unless classes are 2 (got {output})")
        self.network, self.output = network, output
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup, self.seed = schedule, warmup, seed
        self.measures = nn.ModuleDict({f"of_{part}": _measures(part, roc_auc) for part in PARTS})
        self.batch_shape: tuple[int, ...] = ()
        if compile:
            network.compile()

    def forward(self, batch: Batch) -> Tensor:
        """What the network says of a batch, as float32."""
        return self.network(batch.x, batch.mask).float()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout and whatever else is random in the step."""
        step = self.trainer.fit_loop.total_batch_idx
        [word] = bits(1, self.seed, part=_STEP_STREAM, epoch=step, index=self.global_rank)
        torch.default_generator.manual_seed(int(word))  # torch.manual_seed takes milliseconds
        if self.device.type == "cuda":
            torch.cuda.manual_seed(int(word))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of one batch, (); Lightning steps on it."""
        losses = self._measure(batch, "train")
        if self.trainer.world_size == 1:
            return losses.mean()
        count = torch.tensor(float(len(losses)), device=self.device)
        mean_count = self.trainer.strategy.reduce(count, reduce_op="mean")
        return losses.sum() / mean_count  # whose mean over the processes is that of all samples

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures one batch of the validation part."""
        self._measure(batch, "validation")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures one batch of the test part."""
        self._measure(batch, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with its learning rate set anew at every step."""
        decayed, plain = decay_groups(self.network)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        # Lightning does not clip gradients for a fused optimizer in mixed precision.
        fused = "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=fused)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) and (self.schedule == "cosine" or self.warmup > 0):
            raise ValueError(
                "Learner: the trainer must know max_epochs or max_steps for schedule cosine and "
                "for warmup (got neither)"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._rate_factor(step, steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what all processes have measured in an unfinished epoch, as if one had."""
        finished = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        for name, measure in self._train_states():
            with measure.sync_context():
                for state in measure.metric_state:
                    value = getattr(measure, state)
                    kept = torch.zeros_like(value) if finished else value.clone()
                    checkpoint["state_dict"][f"{name}.{state}"] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives what all processes had measured to the first of them."""
        if self.global_rank > 0:
            for name, measure in self._train_states():
                for state in measure.metric_state:
                    checkpoint["state_dict"][f"{name}.{state}"].zero_()

    def _train_states(self) -> list[tuple[str, Any]]:
        measures = self.measures["of_train"].named_children()
        return [(f"measures.of_train.{name}", measure) for name, measure in measures]

    def _rate_factor(self, step: int, steps: float) -> float:
        rise = self.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))

    def _measure(self, batch: Batch, part: str) -> Tensor:
        """The losses of all answers, (n,)."""
        self.batch_shape = tuple(batch.x.shape)
        scores = self(batch)
        losses, right = judge(scores, batch.y, self.output)
        measures: Any = self.measures[f"of_{part}"]
        measures["loss"].update(losses.detach())
        measures["accuracy"].update(right.float())
        if "count" in measures:
            measures["count"].update(float(len(losses)))
        if "roc_auc" in measures:
            measures["roc_auc"].update(scores[:, 1] - scores[:, 0], batch.y)
        for name, measure in measures.items():
            self.log(
                f"{part}_{name}",
                measure,
                on_step=False,
                on_epoch=True,
                prog_bar=name == "accuracy",
                batch_size=len(batch.y),
            )
        return losses


def judge(scores: Tensor, y: Tensor, output: Classes | Regression) -> tuple[Tensor, Tensor]:
    """Loss and rightness of every answer.

    Args:
        scores: (B, classes), (B, positions, classes) or (B, 1).
        y: (B,) or (B, positions).
        output: what is asked for.

    Returns:
        Losses (n,) and whether the answers are right (n,), bool; n = B or B * positions.
    """
    if isinstance(output, Regression):
        error = scores.squeeze(1) - y
        return error.square(), error.abs() < output.tolerance
    scores, y = scores.flatten(0, -2), y.flatten()
    return functional.cross_entropy(scores, y, reduction="none"), scores.argmax(1) == y


def decay_groups(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that weight decay applies to, and the others."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = isinstance(module, (nn.Embedding, LearnedPositions))
            kept = kept or parameter.dim() < 2 or name.endswith("bias")
            (plain if kept else decayed).append(parameter)
    return decayed, plain


def _measures(part: str, roc_auc: bool) -> nn.ModuleDict:
    means = {"loss": MeanMetric(), "accuracy": MeanMetric()}
    for mean in means.values():
        mean.persistent(part == "train")  # so that an interrupted epoch goes on being measured
    measures = nn.ModuleDict(means)
    if roc_auc and part != "train":
        measures["roc_auc"] = BinaryAUROC()
    if part == "test":
        measures["count"] = SumMetric()
    return measures
