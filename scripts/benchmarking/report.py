"""Tables and files: what is printed of the records, and how they are stored and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarking.cases import SMALL_CHANNELS, TRAFFIC
from benchmarking.runner import Row

Document = dict[str, Any]  # command, date, settings, machine, results
Lines = list[list[str]]  # a table, its header first
MEASURES = ("copy", "torch.mm")  # not peers


def write(document: Document, path: Path) -> None:
    """JSON with a line per record, and five digits: differences stay readable."""
    head = {name: value for name, value in document.items() if name != "results"}
    lines = [json.dumps(rounded(row)) for row in document["results"]]
    body = (
        json.dumps(head, indent=1)[:-2] + ',\n "results": [\n  ' + ",\n  ".join(lines) + "\n ]\n}"
    )
    path.write_text(body + "\n")


def rounded(row: Row) -> Row:
    """A record with five significant digits."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def cell(row: Row | None, name: str, form: str = ".3g") -> str:
    """One figure of a record, a dash where it has none."""
    value = row.get(name) if row else None
    return "-" if value is None else format(value, form)


def milliseconds(row: Row | None) -> str:
    """The median, and in parentheses the one with the default allocator."""
    if row is None or row["failure"]:
        return row["failure"] if row else "-"
    default = f" ({cell(row, 'default_ms')})" if "default_ms" in row else ""
    return cell(row, "median_ms") + default


def times_ours(row: Row | None) -> str:
    """The milliseconds of a peer, and how many of ours they are."""
    ratio = row.get("times_paramixer") if row and row["peer"] not in ("paramixer", "copy") else None
    return milliseconds(row) + (f" {ratio:.2g}x" if ratio else "")


def case_tables(rows: list[Row]) -> Iterator[tuple[str, Lines]]:
    """Everything that was measured of one case, case by case."""
    head = "peer|operation|ms (default)|min|quartiles|calls|GB/s|of copy|minima|GFMA/s"
    head += "|of FMA peak|x paramixer|MiB"
    for case in dict.fromkeys(row["case"] for row in rows):
        lines = [head.split("|")]
        for row in (row for row in rows if row["case"] == case):
            line = [row["peer"], row["operation"], milliseconds(row), cell(row, "min_ms")]
            line += [f"{cell(row, 'q1_ms')}..{cell(row, 'q3_ms')}", str(row["calls"])]
            line += [cell(row, "gb_per_s", ".1f"), cell(row, "copy_ratio", ".0%")]
            line += [cell(row, "copy_ratio_of_minima", ".0%"), cell(row, "gfma_per_s")]
            line += [cell(row, "peak_share", ".1%"), cell(row, "times_paramixer", ".2f")]
            lines.append([*line, cell(row, "peak_mib")])
        yield case, lines


def summary(rows: list[Row], show_cell: Callable[[Row | None], str], extra: list[str]) -> Lines:
    """A line per case and operation, a column per peer, and figures of ours named in `extra`."""
    titles = {"copy_ratio": "of copy", "peak_share": "of FMA peak"}
    by_key = {(row["case"], row["peer"], row["operation"]): row for row in rows}
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["peer"] != "torch.mm"))
    if "copy_ratio" not in extra:
        peers = [peer for peer in peers if peer != "copy"]
    lines = [["case", "operation", *peers, *(f"paramixer {titles[name]}" for name in extra)]]
    operations = dict.fromkeys(r["operation"] for r in rows if r["peer"] not in MEASURES)
    for case in dict.fromkeys(row["case"] for row in rows):
        # The two halves of a factor's backward have no peers.
        for operation in [o for o in operations if o not in ("mix_transpose", "link_dot")]:
            found = [by_key.get((case, peer, operation)) for peer in peers]
            if any(found):
                ours = by_key.get((case, "paramixer", operation))
                figures = [cell(ours, name, ".0%") for name in extra]
                lines.append([case, operation, *map(show_cell, found), *figures])
    return lines


def small_channel_table(rows: list[Row]) -> Lines:
    """A line per D, a column per operation."""
    ours = [row for row in rows if row["peer"] == "paramixer"]
    cost = {(r["shape"][2], r["operation"]): r["median_ms"] * 1e6 / r["bytes"] for r in ours}
    names = [name for name in TRAFFIC if (SMALL_CHANNELS[-1], name) in cost]
    lines = [["D", *names]]
    for width in SMALL_CHANNELS:
        pairs = [(cost[width, name], cost[SMALL_CHANNELS[-1], name]) for name in names]
        lines.append([str(width), *(f"{own:.4f} ({own / widest:.2f})" for own, widest in pairs)])
    return lines


def page_table(rows: list[Row]) -> Lines:
    """Ours alone with the default allocator, with huge pages and without."""
    lines = [["case", "operation", "huge pages", "4 KiB pages", "ratio"]]
    for row in rows:
        if row.get("huge_pages_ms") and row.get("small_pages_ms"):
            ratio = f"{row['small_pages_ms'] / row['huge_pages_ms']:.2f}"
            times = [cell(row, "huge_pages_ms"), cell(row, "small_pages_ms")]
            lines.append([row["case"], row["operation"], *times, ratio])
    return lines


def is_probe(row: Row) -> bool:
    """Whether this is the FMA probe, and ran."""
    return row["peer"] == "torch.mm" and "median_ms" in row


def comparison(rows: list[Row], old: list[Row]) -> Lines:
    """Old and new medians; a change within the quartiles of either is put in parentheses."""
    keys = ("case", "peer", "operation", "device")
    before = {tuple(row.get(key) for key in keys): row for row in old}
    lines = [["case", "operation", "peer", "old ms", "new ms", "new / old", "memory new / old"]]
    for row in rows:
        past = before.get(tuple(row.get(key) for key in keys))
        if past and "median_ms" in row and "median_ms" in past:
            change = f"{row['median_ms'] / past['median_ms']:.2f}"
            if row["q1_ms"] <= past["q3_ms"] and past["q1_ms"] <= row["q3_ms"]:
                change = f"({change})"
            new_mib, old_mib = row.get("peak_mib"), past.get("peak_mib")
            ratio = f"{new_mib / old_mib:.2f}" if new_mib and old_mib else "-"
            line = [row["case"], row["operation"], row["peer"], cell(past, "median_ms")]
            lines.append([*line, cell(row, "median_ms"), change, ratio])
    return lines


def show(title: str, lines: Lines, markdown: bool) -> None:
    """Prints a table, with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        markdown = True
    if not markdown:
        table = Table(*lines[0], title=title, title_justify="left")
        for line in lines[1:]:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}\n")
    for line in [lines[0], ["-" * width for width in widths], *lines[1:]]:
        print("| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |")


def report(document: Document, markdown: bool) -> None:
    """Prints the tables, and what they stand for."""
    rows = document["results"]
    if document["settings"]["small_channels"]:
        title = "nanoseconds per byte (over those of D = 128)"
        show(title, small_channel_table(rows), markdown)
    else:
        for title, lines in [] if markdown else case_tables(rows):
            show(title, lines, markdown)
        title = "milliseconds" + " (default allocator)" * any("default_ms" in row for row in rows)
        ours = [row for row in rows if row["peer"] == "paramixer"]
        extra = [x for x in ("copy_ratio", "peak_share") if any(x in row for row in ours)]
        show(f"{title}, x times paramixer", summary(rows, times_ours, extra), markdown)
        if any("peak_mib" in row for row in rows):
            table = summary(rows, lambda row: cell(row, "peak_mib"), [])
            show("peak memory, MiB above the state before", table, markdown)
        if len(pages := page_table(ours)) > 1:
            show("fresh memory: milliseconds with the default allocator", pages, markdown)
    facts = ", ".join(f"{name} {fact}" for name, fact in document["machine"].items())
    print(f"\n{document['command']}\n{facts}")
    probe = [row["gfma_per_s"] * row["median_ms"] / row["min_ms"] for row in rows if is_probe(row)]
    print(
        f"Medians of interleaved rounds; {document['settings']['budget']:g} s each, so slow ones "
        "have few calls. FMA peak: the fastest call of a large float32 torch.mm in the same "
        f"rounds, {min(probe):.0f} to {max(probe):.0f} GFMA/s over the cases."
    )
