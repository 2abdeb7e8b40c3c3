"""Trains every model of a study on every task of it, each for the same time, one record a run.

    python scripts/study.py scripts/configs/study/synthetic.yaml
    python scripts/study.py scripts/configs/study/mini.yaml --workers 2 --only "d*/*" "*/*-deep"
    python scripts/report.py scripts/results/synthetic --out scripts/results/synthetic

A study says

    seeds: [0]
    tasks:  NAME: {cpu_seconds: 60, files: [../adding.yaml], stop_above: 0.9995, data: {..}}
    models: NAME: {files: [../deep.yaml], model: {..}}

`files` are configurations of scripts/train.py, read first; all other keys but `cpu_seconds` and
`stop_above` are settings of one, those of the model read over those of the task. `cpu_seconds` is
what all training steps of a run may take of one processor, validation not counted: the first steps
measure how many that are, once for all seeds, and the schedule fits that number. `stop_above` is a
validation accuracy beyond which a run ends before.

What was fixed is written to runs/STUDY/TASK/MODEL/seed-S.yaml, a configuration with which

    python scripts/train.py fit --config runs/STUDY/TASK/MODEL/seed-S.yaml

repeats the run exactly. Its record is copied to scripts/results/STUDY/TASK/MODEL/seed-S. A run that
has one is left out, an interrupted one goes on: the same command continues a study, also elsewhere.
Set OMP_NUM_THREADS=1 to give every worker one processor.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import runpy
import shutil
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent

try:
    import yaml
    from lightning import Callback, LightningModule, Trainer, seed_everything
    from paramixer.tasks.files import replacing
    from paramixer.training import data_for, learner_for, quiet_lightning
except ModuleNotFoundError as error:
    sys.exit(f"study: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"study: {error}")

VALIDATIONS = 10  # of a run of fewer epochs; longer ones are validated after every epoch
MEASURED_STEPS, WARM_STEPS = 25, 5
MEASURED_SHARE = 0.05  # of the budget, on top of it

Settings = dict[str, Any]


class Run(NamedTuple):
    """One training.

    Attributes:
        name: STUDY/TASK/MODEL/seed-S.
        cpu_seconds: of all training steps.
        settings: of scripts/train.py, but for the number of steps.
    """

    name: str
    cpu_seconds: float
    settings: Settings


class Clock(Callback):
    """Measures the processor time of a step, and ends the training when it knows it.

    Args:
        seconds: to measure at least.
    """

    def __init__(self, seconds: float) -> None:
        self.per_step, self._seconds = 0.0, seconds
        self._steps, self._start = 0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step; the first ones are slow."""
        self._steps += 1
        now = time.process_time()
        if self._steps <= WARM_STEPS:
            self._start = now
        elif self._steps >= MEASURED_STEPS and now - self._start >= self._seconds:
            self.per_step = (now - self._start) / (self._steps - WARM_STEPS)
            trainer.should_stop = True


def main() -> None:
    """Runs what has no record yet."""
    arguments = parse()
    runs: list[Run] = []
    for path in arguments.studies:
        try:
            runs += runs_of(yaml.safe_load(path.read_text()), path, arguments.runs)
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            sys.exit(f"study: {path} is no study: {error!r}")
    chosen = in_order(runs, arguments.only)
    missing = [run for run in chosen if not (arguments.results / run.name / "record.json").exists()]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} runs have a record", flush=True)
    failed = list(run_all(missing, arguments))
    if failed:
        sys.exit(f"study: failed: {', '.join(failed)}; see log.txt of each in {arguments.runs}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+", help="YAML files")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of TASK/MODEL, in order")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="of the records")
    return parser.parse_args()


def in_order(runs: list[Run], patterns: list[str]) -> list[Run]:
    """Those whose TASK/MODEL fits a pattern, what fits the first pattern first."""
    fits = [
        run for one in patterns for run in runs if fnmatch("/".join(run.name.split("/")[1:3]), one)
    ]
    return list({run.name: run for run in fits}.values())


def runs_of(study: Settings, path: Path, folder: Path) -> Iterator[Run]:
    """All runs of a study, in its order."""
    for task, of_task in study["tasks"].items():
        for model, of_model in study["models"].items():
            settings = merged(read(of_task, path.parent), read(of_model or {}, path.parent))
            budget = float(settings.pop("cpu_seconds"))
            target = settings.pop("stop_above", None)
            if target is not None:
                settings = merged(settings, {"trainer": {"callbacks": [stop_above(target)]}})
            for seed in study.get("seeds", [0]):
                name = f"{path.stem}/{task}/{model}/seed-{seed}"
                named = {"name": model, "seeds": [seed], "out": str((folder / name).parent)}
                yield Run(name, budget, settings | named)


def read(settings: Settings, folder: Path) -> Settings:
    """The settings read over those of their files."""
    below: Settings = {}
    for file in settings.get("files", []):
        below = merged(below, yaml.safe_load((folder / file).read_text()))
    return merged(below, {key: value for key, value in settings.items() if key != "files"})


def merged(below: Settings, above: Settings) -> Settings:
    """`above` read over `below`, key by key."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        nested = isinstance(value, dict) and isinstance(old, dict)
        both[key] = merged(old, value) if nested else value
    return both


def stop_above(accuracy: float) -> Settings:
    """A callback that ends the training beyond a validation accuracy."""
    return {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {
            "monitor": "validation_accuracy",
            "mode": "max",
            "patience": 10**6,
            "stopping_threshold": accuracy,
            "check_on_train_epoch_end": False,
        },
    }


def run_all(runs: list[Run], arguments: argparse.Namespace) -> Iterator[str]:
    """Runs each in a process of its own, some at a time; gives the names of those that failed."""
    script = runpy.run_path(str(HERE / "train.py"), run_name="train")  # imports once, for all
    waiting, working = list(runs), dict[Any, Run]()
    while waiting or working:
        while waiting and len(working) < arguments.workers:
            run = waiting.pop(0)
            process = get_context("fork").Process(target=train, args=(run, arguments.runs, script))
            process.start()
            working[process] = run
        wait([process.sentinel for process in working])
        for process in [one for one in working if not one.is_alive()]:
            run = working.pop(process)
            print(f"{run.name}  {'failed' if process.exitcode else 'done'}", flush=True)
            if process.exitcode:
                yield run.name
            else:
                keep(arguments.runs / run.name, arguments.results / run.name)


def keep(folder: Path, target: Path) -> None:
    """Copies the record; a reader never sees half of it."""
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / "record.json") as temporary:
        shutil.copy(folder / "record.json", temporary)


def train(run: Run, runs: Path, script: dict[str, Any]) -> None:
    """Fixes the number of steps unless that is done, and calls scripts/train.py."""
    folder = runs / run.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        for shown in (1, 2):  # also what is said of an error at the end of the process
            os.dup2(log.fileno(), shown)
    quiet_lightning()
    plan = folder.with_suffix(".yaml")
    if not plan.exists():
        steps = steps_of(run, folder.with_name("steps.yaml"))
        with replacing(plan) as temporary:
            temporary.write_text(yaml.safe_dump(merged(run.settings, {"trainer": steps})))
    sys.argv = [str(HERE / "train.py"), "fit", "--config", str(plan), "--resume", "true"]
    script["main"]()


def steps_of(run: Run, path: Path) -> Settings:
    """The schedule of all seeds, in a file: the first of them makes it, others wait for that."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        steps: Settings | None = yaml.safe_load(file)
        if steps is None:
            seconds, batches = measure(run)
            print(f"{seconds:.5f} CPU seconds a step, {batches} steps an epoch", flush=True)
            steps = schedule(run.cpu_seconds, seconds, batches)
            yaml.safe_dump(steps, file)
        return steps


def measure(run: Run) -> tuple[float, int]:
    """CPU seconds of a training step, and how many steps an epoch has."""
    settings = run.settings
    seed_everything(0, verbose=False)
    flatten = settings["model"].get("pooling") == "flatten"
    data = data_for(**settings["data"], full_length=flatten)
    learner = learner_for(data.task, **settings["model"])
    clock = Clock(MEASURED_SHARE * run.cpu_seconds)
    trainer = Trainer(
        max_epochs=10**6,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=settings.get("trainer", {}).get("gradient_clip_val"),
        callbacks=[clock],
    )
    trainer.fit(learner, datamodule=data)
    return clock.per_step, int(trainer.num_training_batches)


def schedule(cpu_seconds: float, per_step: float, batches: int) -> Settings:
    """How many steps or epochs fit, and when they are validated, as settings of the trainer."""
    steps = max(VALIDATIONS, int(cpu_seconds / per_step))
    if steps >= VALIDATIONS * batches:
        return {"max_epochs": steps // batches}
    interval = steps // VALIDATIONS
    return {
        "max_epochs": -1,
        "max_steps": VALIDATIONS * interval,
        "val_check_interval": interval,
        "check_val_every_n_epoch": None,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
