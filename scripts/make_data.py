"""Makes the data of generated tasks, in the formats of the Long Range Arena's release.

    python scripts/make_data.py listops                       # 96,000 / 2,000 / 2,000, 0.6 GB
    python scripts/make_data.py listops --preset mini
    python scripts/make_data.py pathfinder --size 32          # 200,000 of each difficulty
    python scripts/make_data.py pathfinder --size 128 --difficulty hard      # Path-X
    python scripts/make_data.py speed                         # of the generators; writes nothing

What is complete is kept: after Ctrl-C, or worse, the same command goes on. The same seed gives the
same data everywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

try:
    import numpy as np
    from paramixer.tasks import listops, pathfinder
    from paramixer.tasks.files import Record
    from paramixer.tasks.generators import processors
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
    tasks.add_parser("speed", help="of the generators").set_defaults(make=show_speed)
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


def summarize(record: Record) -> None:
    """Prints counts, lengths and label shares; many files become one row."""
    parts = record.parts
    if len(parts) > MOST_ROWS:
        names = ("samples", "labels")
        sums = {name: sum(np.array(part[name]) for part in parts.values()) for name in names}
        parts = {f"{len(parts)} files": sums}
    table = Table("file", "samples", "tokens", "share of each label, %", title=str(record.folder))
    for name, part in parts.items():
        shares = 100 * np.array(part["labels"]) / max(part["samples"], 1)
        told = " ".join(f"{share:.1f}" for share in shares)
        table.add_row(name, f"{part['samples']:,}", lengths(part), told)
    console.print(table)


def lengths(part: dict) -> str:
    """Range, mean and median of the lengths in a file, where they differ."""
    if "lengths" not in part:
        return "-"
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


if __name__ == "__main__":
    main()
