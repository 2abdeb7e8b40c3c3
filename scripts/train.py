"""Trains any model of paramixer on any of its tasks, and tests what validation chose.

    python scripts/train.py fit --config scripts/configs/listops.yaml --data.settings.folder data
    python scripts/train.py fit --config scripts/configs/adding.yaml --model.protocol cdil
    python scripts/train.py fit --config scripts/configs/order.yaml --seeds 1 2 3
    python scripts/train.py fit --config scripts/configs/order.yaml --trainer.devices 2
    torchrun --nproc-per-node 8 scripts/train.py fit --config .. --trainer.devices 8

Every setting of a configuration can be given on the command line too; `fit --help` lists them.
Several `--config` files are read one over the other. Each seed leaves one folder:

    config.yaml  record.json  best.ckpt  last.ckpt  curve.png  events.out.tfevents..

Ctrl-C leaves last.ckpt; the same command with `--resume true` goes on, also after worse.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see scripts/quickstart.py
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls

try:
    from lightning import seed_everything
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.utilities import rank_zero_only
    from paramixer.training import (
        INTERRUPTED,
        BestCheckpoint,
        Curve,
        EpochLines,
        LastCheckpoint,
        Progress,
        RunRecord,
        data_for,
        evaluate_best,
        fit,
        learner_for,
        quiet_lightning,
        read_records,
        show_record,
        start_record,
        summarize,
        write_json,
    )
    from rich.console import Console
except ModuleNotFoundError as error:
    sys.exit(f"train: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"train: {error}")

LEFT_BEHIND = ("record.json", "best.ckpt", "last.ckpt")

console = Console()


class BriefParser(LightningArgumentParser):
    """Says what is wrong without the page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program."""
        sys.stderr.write(f"train: {message} (fit --help lists what there is)\n")
        sys.exit(2)


class TrainCli(LightningCLI):
    """`fit`: one seed in this process, several in a process each."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`, which tests too; where it goes on is up to `--resume`."""
        data = {"train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": {"model", "ckpt_path", "weights_only", *data}}

    def add_default_arguments_to_parser(self, parser: Any) -> None:
        """What is neither the model's, nor the data's, nor the trainer's."""
        parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
        parser.add_argument("--name", type=str | None, default=None, help="of the model, in tables")
        parser.add_argument(
            "--out", type=str | None, default=None, help="folder; default runs/CONFIG-NAME"
        )
        parser.add_argument("--resume", type=bool, default=False, help="go on from last.ckpt")
        parser.add_argument(
            "--checkpoint_seconds", type=float, default=300, help="between writing last.ckpt"
        )

    def add_arguments_to_parser(self, parser: Any) -> None:
        """What follows from other settings."""
        for group in ("data", "model"):
            parser.link_arguments("seeds", f"{group}.seed", compute_fn=_first)
        parser.link_arguments("model.pooling", "data.full_length", compute_fn=_is_flatten)
        parser.link_arguments("data.task", "model.task", apply_on="instantiate")

    def _set_seed(self) -> None:
        """Replaces Lightning's `--seed_everything`."""
        seed_everything(self.config.fit.seeds[0], verbose=False)

    def before_instantiate_classes(self) -> None:
        """Sends several seeds to processes of their own."""
        config = self.config.fit
        self.name = _name(config)
        self.out = Path(config.out or f"runs/{_stem(config)}-{self.name}")
        if len(config.seeds) > 1:
            sys.exit(_run_each(config.seeds, self.out, config.resume))
        self.folder = self.out / f"seed-{config.seeds[0]}"

    def instantiate_classes(self) -> None:
        """An error here is the user's and needs no traceback."""
        try:
            if rank_zero_only.rank == 0:
                _check_folder(self.folder, self.config.fit.resume)
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, ImportError) as error:
            sys.exit(f"train: {error}")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Gives the trainer what writes into the run's folder."""
        self._dump_config()
        [seed] = self.config.fit.seeds
        record = start_record(self.datamodule.task, self.name, self.config_dump, seed)
        curve = Curve()
        self.record = RunRecord(self.folder, curve, record)
        self.best = BestCheckpoint(self.folder)
        callbacks = [
            curve,
            Progress(curve) if console.is_terminal else EpochLines(curve),
            self.record,
            self.best,
            LastCheckpoint(self.folder / "last.ckpt", self.config.fit.checkpoint_seconds),
        ]
        return super().instantiate_trainer(
            callbacks=[*(self._get(self.config_init, "trainer").callbacks or []), *callbacks],
            logger=TensorBoardLogger(self.folder, name="", version=""),
            default_root_dir=str(self.folder),
            enable_progress_bar=console.is_terminal,
            **kwargs,
        )

    def fit(self, **_: Any) -> None:
        """Trains, tests once what validation chose, and shows it."""
        if not self._train():
            self.record.update(self.trainer, finished=False)
            again = shlex.join([*_command(), "--resume", "true"])
            _say(f"Interrupted. What there is lies in {self.folder}. To go on: {again}")
            sys.exit(INTERRUPTED)
        result = evaluate_best(self.trainer, self.model, self.datamodule, self.best)
        self.record.update(self.trainer, finished=True, **result)
        if self.trainer.is_global_zero:
            show_record(self.record.values, console)
            _say(f"Record, checkpoints and pictures: {self.folder}")

    def _train(self) -> bool:
        """Whether every epoch was trained; says the batch when memory does not suffice."""
        last = self.folder / "last.ckpt"
        start = last if self.config.fit.resume and last.exists() else None
        try:
            return fit(self.trainer, self.model, self.datamodule, start)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            samples, *_, length = self.model.batch_shape[: 2 + (self.datamodule.task.sequences > 1)]
            sys.exit(
                f"train: out of memory at a batch of {samples} samples of length {length} in one "
                "process. Give a smaller --data.batch_size, with --trainer.accumulate_grad_batches "
                "to make up for it, or --trainer.precision bf16-mixed"
            )


def main() -> None:
    """Runs the command line."""
    quiet_lightning()
    TrainCli(
        learner_for,
        data_for,
        save_config_kwargs={"overwrite": True},
        parser_class=BriefParser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={
            "max_epochs": 10,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        },
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch or Python says so, on any device."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _run_each(seeds: list[int], out: Path, resume: bool) -> int:
    """Runs this command for one seed after the other, those that are finished left out."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.exit(f"train: --seeds must be one seed under torchrun (got {seeds})")
    signal.signal(signal.SIGINT, lambda *_: None)  # which the run gets too, and answers
    for seed in seeds:
        if resume and any("test" in record for record in read_records([out / f"seed-{seed}"])):
            continue
        status = subprocess.Popen([*_command(), "--seeds", str(seed)]).wait()
        if status != 0:
            return status
    summary = summarize(read_records([out / f"seed-{seed}" for seed in seeds]))
    write_json(summary, out / "summary.json")
    console.print(
        f"{len(seeds)} seeds: {100 * summary['mean']:.2f} +- {100 * summary['deviation']:.2f} % "
        f"({out / 'summary.json'})"
    )
    return 0


def _check_folder(folder: Path, resume: bool) -> None:
    there = [name for name in LEFT_BEHIND if (folder / name).exists()]
    if there and not resume:
        raise ValueError(
            f"{folder} holds a run already ({', '.join(there)}). Give --resume true to go on with "
            "it, give another --out, or delete it"
        )


def _name(config: Any) -> str:
    parts = (config.model.mixer, config.model.protocol)
    return config.name or "-".join(part for part in parts if part)


def _stem(config: Any) -> str:
    return "+".join(Path(str(path)).stem for path in config.config or []) or config.data.task


def _command() -> list[str]:
    return [sys.executable, *sys.argv]


def _say(text: str) -> None:
    if rank_zero_only.rank == 0:
        console.print(text, soft_wrap=True, highlight=False)


def _first(seeds: list[int]) -> int:
    return seeds[0]


def _is_flatten(pooling: str) -> bool:
    return pooling == "flatten"


if __name__ == "__main__":
    main()
