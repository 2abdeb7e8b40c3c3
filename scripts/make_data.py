"""Makes data in the formats of the Long Range Arena's release, and prepares those of any task.

    python scripts/make_data.py listops                       # 96,000 / 2,000 / 2,000, 0.6 GB
    python scripts/make_data.py listops --preset mini
    python scripts/make_data.py pathfinder --size 32          # 200,000 of each difficulty
    python scripts/make_data.py pathfinder --size 128 --difficulty hard      # Path-X
    python scripts/make_data.py speed                         # of the generators; writes nothing

    python scripts/make_data.py mini-movies                   # real data that a package brings
    python scripts/make_data.py mini-fashion --variant 784
    python scripts/make_data.py lra-text --folder aclImdb     # the official files, read once
    python scripts/make_data.py floors mini-movies            # measures what is in floors.json

What is complete is kept: after Ctrl-C, or worse, the same command goes on. The same seed gives the
same data everywhere.
"""

from __future__ import annotations

import argparse
import inspect
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    from paramixer import tasks
    from paramixer.tasks import listops, pathfinder
    from paramixer.tasks.files import Record, sample_facts
    from paramixer.tasks.floors import store_floors
    from paramixer.tasks.generators import processors
    from paramixer.tasks.stored import StoredPart
    from paramixer.tasks.task import Part, Reals, Task
    from PIL import Image
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(f"make_data: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"make_data: {error}")

INTERRUPTED = 130  # what a shell reports for Ctrl-C
MOST_ROWS = 3  # of a summary
SHOWN_SAMPLES = 3
SHOWN_WIDTH = 100
SHADES = " .:-=+*#@"  # from black to white
SETTINGS: dict[str, dict[str, Any]] = {  # that tasks may have, and make_data passes on
    "folder": {"type": Path, "help": "of the files, or of the packages' archives"},
    "variant": {"help": "of the task"},
    "length": {"type": int, "help": "of the samples"},
    "size": {"type": int, "help": "of the pictures"},
}

console = Console()


def main() -> None:
    """Makes what the command line says."""
    arguments = parse()
    try:
        arguments.make(arguments)
    except KeyboardInterrupt:
        console.print("Interrupted. What is complete is kept: the same command goes on.")
        sys.exit(INTERRUPTED)
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f"make_data: {error}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="TASK")
    for add in (add_listops, add_pathfinder):
        add(commands)
    for name in tasks.names():
        add_registered(commands, name, prepare_task)
    commands.add_parser("speed", help="of the generators").set_defaults(make=show_speed)
    floors = commands.add_parser("floors", help="of a small task, measured again")
    floors = floors.add_subparsers(required=True, metavar="TASK")
    for name in filter(has_floors, tasks.names()):
        add_registered(floors, name, measure_floors)
    return parser.parse_args()


def has_floors(name: str) -> bool:
    """Whether a task has floors that are measured and stored."""
    return name.startswith("mini-")


def add_registered(commands: argparse._SubParsersAction, name: str, make: Callable) -> None:
    """A task of `tasks.names()`, with those of the settings that it has."""
    maker = tasks.maker(name)
    told = inspect.getdoc(maker).splitlines()[0].replace("%", "%%")
    parser = commands.add_parser(name, help=told)
    parser.set_defaults(make=make, task=name)
    for parameter in inspect.signature(maker).parameters.values():
        if parameter.name in SETTINGS:
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            option = SETTINGS[parameter.name] | {"required": required, "default": default}
            parser.add_argument(f"--{parameter.name}", **option)


def add_task(
    commands: argparse._SubParsersAction, name: str, help: str, make: Callable
) -> argparse.ArgumentParser:
    """A task with the arguments that all have."""
    task = commands.add_parser(
        name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    task.set_defaults(make=make)
    task.add_argument("--out", type=Path, default=Path("data"), help="folder of all data")
    task.add_argument("--seed", type=int, default=0, help="of the data")
    task.add_argument("--threads", type=int, help="one for every processor; changes no data")
    return task


def add_listops(commands: argparse._SubParsersAction) -> None:
    """The arguments of ListOps."""
    task = add_task(
        commands, "listops", "nested operations over digits, as TSV files", make_listops
    )
    task.add_argument("--preset", choices=listops.PRESETS, default="lra", help="what is not named")
    task.add_argument("--max-depth", type=int, help="the root is at 1")
    task.add_argument("--max-args", type=int, help="of an operator")
    task.add_argument("--min-length", type=int, help="expressions have more tokens")
    task.add_argument("--max-length", type=int, help="expressions have fewer tokens")
    task.add_argument("--operators", nargs="+", help="of MIN, MAX, MED, SM")
    for part in listops.Counts._fields:
        task.add_argument(f"--{part}", type=int, help="samples")


def add_pathfinder(commands: argparse._SubParsersAction) -> None:
    """The arguments of Pathfinder."""
    task = add_task(
        commands, "pathfinder", "are two discs on one path? PNG files and metadata", make_pathfinder
    )
    task.add_argument("--size", type=int, default=32, choices=pathfinder.SIZES, help="in pixels")
    levels = list(pathfinder.FOLDERS)
    task.add_argument("--difficulty", nargs="+", choices=levels, default=levels, help="of these")
    task.add_argument("--count", type=int, default=pathfinder.LRA_COUNT, help="of each difficulty")


def make_listops(arguments: argparse.Namespace) -> None:
    """Writes the three files and shows what is in them."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    preset = listops.PRESETS[arguments.preset]
    counts = {name: given[name] for name in preset.counts._fields if name in given}
    grammar_fields = ("max_depth", "max_args", "min_length", "max_length", "operators")
    grammar = {name: given[name] for name in grammar_fields if name in given}
    if "operators" in grammar:
        grammar["operators"] = tuple(grammar["operators"])
    preset = listops.Preset(replace(preset.grammar, **grammar), preset.counts._replace(**counts))
    name = "listops-1000" if arguments.preset == "lra" else f"listops-{arguments.preset}"
    with progress_bar("listops", sum(preset.counts)) as progress:
        record = listops.write(
            arguments.out / name,
            preset,
            seed=arguments.seed,
            threads=arguments.threads,
            progress=progress,
        )
    summarize(record)
    show_expressions(record.folder / listops.FILES[-1])


def make_pathfinder(arguments: argparse.Namespace) -> None:
    """Writes the folders of every difficulty and shows what is in them."""
    for difficulty in arguments.difficulty:
        name = f"pathfinder {arguments.size} {difficulty}"
        with progress_bar(name, arguments.count) as progress:
            record = pathfinder.write(
                arguments.out,
                arguments.size,
                difficulty,
                arguments.count,
                seed=arguments.seed,
                threads=arguments.threads,
                progress=progress,
            )
        summarize(record)
        if arguments.count > 0:
            show_pictures(record.folder)


def prepare_task(arguments: argparse.Namespace) -> None:
    """Reads the data of a task, unless that was done before, and shows what is in them."""
    show_task(load_task(arguments))


def measure_floors(arguments: argparse.Namespace) -> None:
    """Measures the floors of a task and stores them."""
    given = vars(arguments)
    variant = ["--variant", given["variant"]] if "variant" in given else []
    command = shlex.join(["python", "scripts/make_data.py", "floors", arguments.task, *variant])
    show_floors(store_floors(load_task(arguments), command))


def load_task(arguments: argparse.Namespace) -> Task:
    """The task with its settings; samples are counted while they are read."""
    settings = {name: value for name, value in vars(arguments).items() if name in SETTINGS}
    if "folder" not in settings:  # nothing is read: samples are made when they are asked for
        return tasks.load(arguments.task, **settings)
    with progress_bar(arguments.task, total=None) as progress:
        return tasks.load(arguments.task, **settings, progress=progress)


@contextmanager
def progress_bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """What to call with the number of samples that are done more."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total)
        yield lambda samples: progress.advance(task, samples)


def show_speed(_: argparse.Namespace) -> None:
    """Prints how many samples a second the generators make; nothing is written."""
    table = Table("samples a second", *pathfinder.FOLDERS, title=f"{processors()} processors")
    table.add_row("listops", "", "", speed(listops.generate, 20_000))
    for size in pathfinder.SIZES:
        cells = []
        for difficulty in pathfinder.FOLDERS:
            make = partial(pathfinder.generate, options=pathfinder.options(size, difficulty))
            cells.append(speed(make, 2000 if size <= 32 else 100))
        table.add_row(f"pathfinder {size}", *cells)
    console.print(table)


def speed(make: Callable, count: int) -> str:
    """Samples a second over at least a second, as text."""
    start, samples = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < 1:
        make(count, first=samples)
        samples += count
    return f"{samples / elapsed:,.0f}"


def show_task(task: Task) -> None:
    """Prints counts, lengths, label shares, floors and the first samples of a task."""
    parts = dict(zip(task.parts._fields, map(part_facts, task.parts), strict=True))
    show_parts(f"{task.name}, {task.variant}", parts)
    for name, value in task.facts.items():
        console.print(f"{name}: {value}")
    show_floors(task.floors)
    for index in range(min(SHOWN_SAMPLES, len(task.train))):
        x, y = task.train[index]
        label = y.tolist() if y.ndim else y.item()
        print(f"training sample {index}, label {label}:\n{readable(task, x)}")


def part_facts(part: Part) -> dict:
    """What is known of a part without making samples, which those that are generated would need."""
    labels = part.labels if isinstance(part, StoredPart) else np.empty(0, np.int64)
    return sample_facts(part.lengths, labels, classes=0)


def show_floors(floors: dict[str, float]) -> None:
    """Prints accuracies."""
    for name, accuracy in floors.items():
        console.print(f"floor: {name} {accuracy:.2f} %")


def summarize(record: Record) -> None:
    """Prints what a folder holds; many files become one row."""
    parts = record.parts
    if len(parts) > MOST_ROWS:
        names = ("samples", "labels")
        sums = {name: sum(np.array(part[name]) for part in parts.values()) for name in names}
        parts = {f"{len(parts)} files": sums}
    show_parts(str(record.folder), parts)


def show_parts(title: str, parts: dict[str, dict]) -> None:
    """Prints counts, lengths and label shares."""
    table = Table("part", "samples", "length", "share of each label, %", title=title)
    for name, part in parts.items():
        shares = 100 * np.array(part["labels"]) / max(part["samples"], 1)
        told = " ".join(f"{share:.1f}" for share in shares)
        table.add_row(name, f"{part['samples']:,}", lengths(part), told)
    console.print(table)


def lengths(part: dict) -> str:
    """Range, mean and median of the lengths in a file, where they differ."""
    if "lengths" not in part:
        return "-"
    if part["lengths"]["least"] == part["lengths"]["most"]:
        return str(part["lengths"]["most"])
    return "{least} - {most}, mean {mean:.0f}, median {median:.0f}".format(**part["lengths"])


def show_expressions(path: Path) -> None:
    """Prints the first rows of a ListOps file, without parentheses, as one would write them."""
    with path.open() as file:
        for row in islice(file, 1, 1 + SHOWN_SAMPLES):
            source, label = row.rstrip().split("\t")
            expression = listops.decode(source)
            if len(expression) > SHOWN_WIDTH:
                expression = (
                    f"{expression[:SHOWN_WIDTH].rstrip()} .. ({len(expression.split())} tokens)"
                )
            print(f"{expression} = {label}")


def show_pictures(folder: Path) -> None:
    """Prints the first pictures of a Pathfinder folder in characters."""
    rows = (folder / "metadata" / "0.npy").read_text().splitlines()[:SHOWN_SAMPLES]
    for directory, name, _, label, *_ in (row.split() for row in rows):
        with Image.open(folder / directory / name) as image:
            image.thumbnail((64, 64), Image.Resampling.LANCZOS)
            print(f"{directory}/{name}, label {label}:\n{characters(np.asarray(image))}")


def characters(pixels: np.ndarray) -> str:
    """A grey picture (2 h, w) as h lines of w characters, about as high as wide."""
    brightest = pixels.reshape(-1, 2, pixels.shape[1]).max(axis=1)
    shades = np.array(list(SHADES))[brightest.astype(int) * len(SHADES) // 256]
    return "\n".join("".join(row) for row in shades)


def readable(task: Task, x: torch.Tensor | tuple[torch.Tensor, ...]) -> str:
    """An input as text: symbols, bytes, a picture where lengths are square, or a line of shades."""
    if isinstance(x, tuple):
        return "\n".join(readable(task, one) for one in x)
    side = math.isqrt(task.length)
    is_picture = side**2 == task.length and (task.train.lengths == task.length).all()
    if isinstance(task.input, Reals):
        values = x[:, 0]
    elif task.input.symbols:
        gap = " " if max(map(len, task.input.symbols)) > 1 else ""
        return shortened(gap.join(task.input.symbols[token] for token in x.tolist()))
    elif not is_picture:
        return shortened(repr(bytes((x - 1).tolist()).decode(errors="replace")))
    else:
        values = x.float()
    shades = (255 * (values - values.min()) / (values.max() - values.min()).clamp(min=1e-9)).byte()
    if is_picture:
        step = max(side // 64, 1)
        return characters(shades.view(side, side)[::step, ::step].numpy())
    return characters(shades[:SHOWN_WIDTH].expand(2, -1).numpy())


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= SHOWN_WIDTH else f"{text[:SHOWN_WIDTH].rstrip()} .."


if __name__ == "__main__":
    main()
