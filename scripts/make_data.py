"""Makes the data of generated tasks, in the formats of the Long Range Arena's release.

    python scripts/make_data.py listops                       # 96,000 / 2,000 / 2,000, 0.6 GB
    python scripts/make_data.py listops --preset mini
    python scripts/make_data.py pathfinder --size 32          # 200,000 of each difficulty
    python scripts/make_data.py pathfinder --size 128 --difficulty hard      # Path-X

What is complete is kept: after Ctrl-C, or worse, the same command goes on. The same seed gives the
same data everywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

try:
    import numpy as np
    from paramixer.tasks import listops, pathfinder
    from paramixer.tasks.files import Record
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
    from rich.text import Text
except ModuleNotFoundError as error:
    sys.exit(f"make_data: the package {error.name} is missing. Run: pip install paramixer[train]")
except ImportError as error:
    sys.exit(f"make_data: {error}")

INTERRUPTED = 130  # what a shell reports for Ctrl-C
SHOWN_SAMPLES = 3
SHOWN_WIDTH = 100

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
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    for add in (add_listops, add_pathfinder):
        add(tasks)
    return parser.parse_args()


def add_task(
    tasks: argparse._SubParsersAction, name: str, help: str, make: Callable
) -> argparse.ArgumentParser:
    """A task with the arguments that all have."""
    task = tasks.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    task.set_defaults(make=make)
    task.add_argument("--out", type=Path, default=Path("data"), help="folder of all data")
    task.add_argument("--seed", type=int, default=0, help="of the data")
    task.add_argument("--threads", type=int, help="one for every processor; changes no data")
    return task


def add_listops(tasks: argparse._SubParsersAction) -> None:
    """The arguments of ListOps."""
    task = add_task(tasks, "listops", "nested operations over digits, as TSV files", make_listops)
    task.add_argument("--preset", choices=listops.PRESETS, default="lra", help="what is not named")
    task.add_argument("--max-depth", type=int, help="the root is at 1")
    task.add_argument("--max-args", type=int, help="of an operator")
    task.add_argument("--min-length", type=int, help="expressions have more tokens")
    task.add_argument("--max-length", type=int, help="expressions have fewer tokens")
    task.add_argument("--operators", nargs="+", help="of MIN, MAX, MED, SM")
    for part in listops.Counts._fields:
        task.add_argument(f"--{part}", type=int, help="samples")


def add_pathfinder(tasks: argparse._SubParsersAction) -> None:
    """The arguments of Pathfinder."""
    task = add_task(
        tasks, "pathfinder", "are two discs on one path? PNG files and metadata", make_pathfinder
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
    summarize(record, listops.CLASSES)
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
        summarize(record, pathfinder.CLASSES)
        if arguments.count > 0:
            show_pictures(record.folder)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
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


def summarize(record: Record, classes: int) -> None:
    """Prints counts, lengths and label shares; many files of one kind become one row."""
    table = Table(title=str(record.folder))
    shares = [f"label {label}" for label in range(classes)]
    for column in ("file", "samples", "tokens: mean", "median", "range", *shares):
        table.add_column(column, justify="left" if column == "file" else "right")
    parts = record.parts
    if len(parts) > len(listops.FILES):
        table.add_row(*summary_row(f"{len(parts)} metadata files", list(parts.values())))
    else:
        for name, facts in parts.items():
            table.add_row(*summary_row(name, [facts]))
    console.print(table)


def summary_row(name: str, facts: list[dict]) -> list[str]:
    """Name, samples, three facts on lengths, and label shares."""
    samples = sum(fact["samples"] for fact in facts)
    labels = np.sum([fact["labels"] for fact in facts], axis=0)
    lengths = facts[0].get("lengths")
    told = ["", "", ""]
    if lengths is not None:
        told = [
            f"{lengths['mean']:.1f}",
            f"{lengths['median']:.0f}",
            f"{lengths['least']} - {lengths['most']}",
        ]
    return [name, f"{samples:,}", *told, *(f"{n / max(samples, 1):.1%}" for n in labels)]


def show_expressions(path: Path) -> None:
    """Prints the first rows of a ListOps file, without parentheses, as one would write them."""
    with path.open() as file:
        for row in islice(file, 1, 1 + SHOWN_SAMPLES):
            source, label = row.rstrip().split("\t")
            expression = listops.decode(source)
            if len(expression) > SHOWN_WIDTH:
                expression = f"{expression[:SHOWN_WIDTH]} .. ({len(expression.split())} tokens)"
            console.print(f"{expression} = {label}", markup=False, highlight=False)


def show_pictures(folder: Path) -> None:
    """Prints the first pictures of a Pathfinder folder, two pixels a character."""
    rows = (folder / "metadata" / "0.npy").read_text().splitlines()[:SHOWN_SAMPLES]
    for directory, name, _, label, *_ in (row.split() for row in rows):
        image = Image.open(folder / directory / name)
        image.thumbnail((64, 64), Image.Resampling.LANCZOS)
        console.print(f"{directory}/{name}: label {label}", highlight=False)
        console.print(blocks(np.asarray(image)), end="")


def blocks(pixels: np.ndarray) -> Text:
    """A grey picture (2 h, w) as h lines of half blocks."""
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
        text.append("\n")
    return text


if __name__ == "__main__":
    main()
