"""The table of finished runs, task by model, with floors and published results.

    python scripts/report.py runs/* [--out report]      # report.md and report.png
    python scripts/report.py scripts/results/mini --compare paramixer-deep paramixer-chord
    python scripts/report.py scripts/results/mixers --costs scripts/benchmarks/results/mixers.json

Reads every record.json in the folders given. A row is a task: one length, one variant of its data,
as many samples. A column is a model; runs that differ in the seed alone become mean +- standard
deviation. What is not comparable carries a mark that the notes below the table explain: published
results of another variant, runs of one model with different settings, validation by the test part.
Unfinished runs are left out and named. Tasks at several lengths are drawn, error against N, in
report-lengths.png. With --costs a row is a model instead and a column a task, and what
`scripts/benchmark.py mixers` measured for the mixer of that name stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    from matplotlib.figure import Figure
    from paramixer.training import read_records, reference_rows, summarize
except ImportError as error:
    sys.exit(f"report: {error}")

Record = dict[str, Any]
Cells = list[list[str]]  # of a table, line by line, the header first

OTHER_VARIANT, VALIDATION, SETTINGS = "†", "§", "‡"
NEAR = "~"
TARGET_ERROR = 0.1  # percent: what "error 0" of the synthetic tasks means, a line in the picture
COST_LENGTHS = [1 << 10, 1 << 13, 1 << 16]
COSTS = {"median_ms": "forward + backward, ms", "peak_mib": "peak memory, MiB"}
NOTES = {
    OTHER_VARIANT: "measured on another variant of the data: not comparable",
    VALIDATION: "the model was chosen on the test part: no estimate for new data",
    SETTINGS: "runs with different settings, separated by semicolons",
}
# Settings of a configuration that change no result, or only as another seed does.
NO_DIFFERENCE = {
    "": {"seeds", "name", "out", "resume", "checkpoint_seconds"},
    "data": {"seed", "workers"},
    "model": {"seed", "compile"},
    "trainer": {"accelerator", "devices", "num_nodes", "strategy", "callbacks", "max_time"},
}


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        task: name, variant, N, and samples of training, validation and test.
        floor: the highest, with its name.
        results: a cell for each model.
        published: the best comparable result, and the best other with its mark.
    """

    task: str
    floor: str
    results: dict[str, str]
    published: str


def main() -> None:
    """Reads the records and writes both forms of the table."""
    arguments = parse()
    try:
        records = read_records(arguments.runs)
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"report: {error}")
    finished = [record for record in records if "test" in record]
    if not finished:
        folders = ", ".join(map(str, arguments.runs))
        sys.exit(f"report: no finished run in {folders} (of {len(records)} records)")
    if arguments.costs:
        cells = by_model(finished, json.loads(arguments.costs.read_text())["results"])
    else:
        cells = by_task(table(finished))
    open_runs = [record["path"] for record in records if "test" not in record]
    text = markdown(cells, open_runs) + "".join(comparison(finished, *arguments.compare))
    text += spent(finished)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    draw(cells, arguments.out.with_suffix(".png"))
    draw_lengths(finished, arguments.out.with_name(f"{arguments.out.name}-lengths.png"))
    print(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("report"), help="without ending")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=(),
        metavar=("MODEL", "OTHER"),
        help="counts the tasks on which a model beats each of the others",
    )
    parser.add_argument(
        "--costs", type=Path, metavar="FILE", help="records of benchmark.py mixers: a row a model"
    )
    return parser.parse_args()


def table(records: list[Record]) -> list[Row]:
    """The rows, in the order of tasks, variants and lengths."""
    by_task = _grouped(records, _task_key)
    return [_row(by_task[key]) for key in sorted(by_task)]


def by_task(rows: list[Row]) -> Cells:
    """A line a task."""
    models = sorted({model for row in rows for model in row.results})
    lines = [
        [row.task, row.floor, *(row.results.get(m, "") for m in models), row.published]
        for row in rows
    ]
    return [["task", "highest floor", *models, "best published"], *lines]


def by_model(records: list[Record], costs: list[Record]) -> Cells:
    """A line a model, the best of the means first, with time and memory of its mixer against N."""
    rows = table(records)
    models = _grouped(records, lambda record: record["model"])
    order = sorted(models, key=lambda model: -summarize(models[model])["mean"])
    floors = ["highest floor", *(row.floor for row in rows), "", ""]
    lines = [
        [m, *(row.results.get(m, "") for row in rows), *(_against_n(costs, m, f) for f in COSTS)]
        for m in order
    ]
    lengths = " / ".join(f"{length:,}" for length in COST_LENGTHS)
    header = ["model", *(row.task for row in rows)]
    return [[*header, *(f"{name} at N = {lengths}" for name in COSTS.values())], floors, *lines]


def _against_n(costs: list[Record], mixer: str, figure: str) -> str:
    """A figure of forward and backward at each of the lengths; "-" where it did not run."""
    found = {
        row["shape"][1]: f"{row[figure]:,.0f}"
        for row in costs
        if (row["peer"], row["operation"]) == (mixer, "forward+backward") and row.get(figure)
    }
    return " / ".join(found.get(length, "-") for length in COST_LENGTHS) if found else ""


def markdown(cells: Cells, open_runs: list[str]) -> str:
    """The table with the notes that its marks need."""
    lines = [f"| {' | '.join(line)} |" for line in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    body = "\n".join(lines)
    notes = [f"{mark} {note}" for mark, note in NOTES.items() if mark in body]
    notes.append("Test accuracy in percent; one run with its 95 % interval, or mean +- deviation.")
    notes += [f"Not finished, left out: {path}" for path in open_runs]
    return body + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def comparison(records: list[Record], model: str = "", *others: str) -> Iterator[str]:
    """Where a model is better than another, by the mean over its runs, and where it is not."""
    for other in others:
        wins, gains = 0, []
        for runs in _grouped(records, _task_key).values():
            of_model = _grouped(runs, lambda record: record["model"])
            if of_model.keys() >= {model, other}:
                task, both = runs[0]["task"], (of_model[model], of_model[other])
                ours, theirs = (100 * summarize(some)["mean"] for some in both)
                wins += ours > theirs
                mark = NEAR if _overlap(*both) else ""
                gains.append(f"{task['name']} {task['length']} {ours - theirs:+.2f}{mark}")
        points = ", ".join(gains)
        yield f"\n{model} beats {other} on {wins} of {len(gains)} tasks; in points: {points}.\n"
        yield f"({NEAR} the 95 % intervals overlap)\n" if NEAR in points else ""


def _overlap(some: list[Record], others: list[Record]) -> bool:
    intervals = [(a["test"]["interval"], b["test"]["interval"]) for a in some for b in others]
    return any(a[0] <= b[1] and b[0] <= a[1] for a, b in intervals)


def spent(records: list[Record]) -> str:
    """What every run took, so that it can be judged and repeated."""
    lines = ["", "| run | parameters | steps | CPU s | best epoch | revision |", "|---" * 6 + "|"]
    for record in records:
        task, training = record["task"], record["training"]
        columns = (
            f"{task['name']} {task['length']}, {record['model']}, seed {record['seed']}",
            f"{record['parameters']:,}",
            f"{training['steps']:,}",
            f"{training['cpu_seconds']:.0f}",
            f"{record['chosen']['epoch']} of {len(training['epochs'])}",
            record["git"][:8],
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def draw_lengths(records: list[Record], path: Path) -> None:
    """Test error against N, for each task that was trained at several lengths."""
    of_task = _grouped(records, lambda record: (record["task"]["name"], record["task"]["variant"]))
    several = {key: runs for key, runs in of_task.items() if len(_lengths(runs)) > 1}
    if not several:
        return
    figure = Figure(figsize=(5 * len(several), 4), layout="constrained")
    panels = figure.subplots(1, len(several), sharey=True, squeeze=False)[0]
    for axes, ((task, _), runs) in zip(panels, several.items(), strict=True):
        for model, of_model in _grouped(runs, lambda record: record["model"]).items():
            at = _grouped(of_model, lambda record: record["task"]["length"])
            errors = [100 - 100 * summarize(at[length])["mean"] for length in sorted(at)]
            axes.plot(sorted(at), errors, marker="o", label=model)
        for floor, accuracy in runs[0]["task"]["floors"].items():
            if accuracy < 100:
                axes.axhline(100 - accuracy, color="gray", linestyle=":")
                axes.annotate(floor, (min(_lengths(runs)), 100 - accuracy), fontsize=7, va="bottom")
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.axhline(TARGET_ERROR, color="green", linewidth=0.7)
        axes.set(title=task, xlabel="N", xticks=_lengths(runs), ylim=(0, 100))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("test error, %")
    figure.savefig(path, dpi=150)


def _lengths(records: list[Record]) -> list[int]:
    return sorted({record["task"]["length"] for record in records})


def draw(cells: Cells, path: Path) -> None:
    """The table as a picture, the notes of its marks below."""
    header, *lines = cells
    widths = [max(len(line[i]) for line in [header, *lines]) + 2 for i in range(len(header))]
    marks = [f"{mark} {note}" for mark, note in NOTES.items() if mark in str(lines)]
    height = 0.3 * len(cells) + 0.2 * len(marks) + 0.3
    figure = Figure(figsize=(0.08 * sum(widths) + 0.4, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    drawn = axes.table(
        lines,
        colLabels=header,
        colWidths=[0.98 * width / sum(widths) for width in widths],
        cellLoc="left",
        bbox=(0.01, 1 - 0.3 * (len(cells) + 0.3) / height, 0.98, 0.3 * len(cells) / height),
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    axes.text(0.01, 0.1 / height, "\n".join(marks), fontsize=7, transform=axes.transAxes)
    figure.savefig(path, dpi=150)


def _row(records: list[Record]) -> Row:
    task = records[0]["task"]
    results = {}
    for model, runs in _grouped(records, lambda record: record["model"]).items():
        groups = _grouped(runs, _settings).values()
        marks = SETTINGS * (len(groups) > 1) + VALIDATION * task["validation_is_test"]
        results[model] = "; ".join(_result(group) for group in groups) + marks
    name, variant, length, samples = _task_key(records[0])
    label = f"{name}, {variant}, N = {length:,}, {samples[0]:,} + {samples[1]:,} + {samples[2]:,}"
    return Row(label, _highest_floor(task), results, _published(task))


def _result(runs: list[Record]) -> str:
    if len(runs) == 1:
        low, high = runs[0]["test"]["interval"]
        return f"{100 * runs[0]['test']['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
    summary = summarize(runs)
    return f"{100 * summary['mean']:.2f} +- {100 * summary['deviation']:.2f} ({len(runs)} runs)"


def _highest_floor(task: Record) -> str:
    floors = task["floors"]
    if not floors:
        return ""
    name = max(floors, key=lambda one: floors[one])
    return f"{floors[name]:.2f} ({name})"


def _published(task: Record) -> str:
    """The best result of the run's variant, then that of the others, marked."""
    rows = [row for row in reference_rows(task) if row.remark != "floor"]
    best = []
    for comparable, mark in ((True, ""), (False, OTHER_VARIANT)):
        some = [row for row in rows if row.comparable == comparable]
        if some:
            row = max(some, key=lambda one: one.accuracy)
            best.append(f"{row.accuracy:.2f} ({row.name}){mark}")
    return ", ".join(best)


def _task_key(record: Record) -> tuple[str, str, int, tuple[int, ...]]:
    task = record["task"]
    return task["name"], task["variant"], task["length"], tuple(task["samples"])


def _settings(record: Record) -> str:
    """All settings that make a difference, as text."""
    config = record["config"]
    groups = {name: config[name] for name in ("data", "model", "trainer")} | {"": config}
    kept = {
        name: {k: v for k, v in group.items() if k not in (*NO_DIFFERENCE, *NO_DIFFERENCE[name])}
        for name, group in groups.items()
    }
    return json.dumps(kept, sort_keys=True)


def _grouped(records: Iterable[Record], key: Any) -> dict[Any, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


if __name__ == "__main__":
    main()
