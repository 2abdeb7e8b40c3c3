"""Pictures of the records: time and memory against N, and the roofline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from benchmarking.runner import Row

MARKERS = "osD^vP*Xh<>"
PALETTE = 64  # colours of a picture
COLORS = 10  # of matplotlib's cycle; beyond them lines are dashed


def pyplot() -> Any:
    """Matplotlib without a screen; imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def style(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for every peer, ours in black."""
    peers = dict.fromkeys(row["peer"] for row in rows if row["peer"] not in ("copy", "torch.mm"))
    looks: dict[str, dict[str, Any]] = {}
    for index, peer in enumerate(peers):
        color = "black" if peer == "paramixer" else f"C{(index - 1) % COLORS}"
        looks[peer] = {"color": color, "marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        looks[peer]["linestyle"] = "--" if index > COLORS else "-"
    return looks


def scaling(document: dict[str, Any], path: Path) -> None:
    """Time and memory of every operation against N; a cross is a peer's last length."""
    plt = pyplot()
    rows = document["results"]
    looks = style(rows)
    operations = list(dict.fromkeys(r["operation"] for r in rows if r["peer"] in looks))
    quantities = [("median_ms", "milliseconds"), ("peak_mib", "peak memory above operands, MiB")]
    panels = [panel for panel in quantities if any(row.get(panel[0]) for row in rows)]
    shape = len(panels), len(operations)
    size = (5.5 * shape[1], 4 * shape[0])
    figure, axes = plt.subplots(
        *shape, figsize=size, layout="constrained", sharex=True, squeeze=False
    )
    for line, (quantity, label) in zip(axes, panels, strict=True):
        for axis, operation in zip(line, operations, strict=True):
            for peer, look in looks.items():
                own = [r for r in rows if (r["peer"], r["operation"]) == (peer, operation)]
                draw_peer(axis, own, quantity, peer, look)
            axis.set(xscale="log", yscale="log", title=operation, ylabel=label)
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("N")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    settings = document["settings"]
    first = next(row for row in rows if row["peer"] in looks)
    figure.suptitle(
        f"{first.get('protocol', 'mixers')}, B = {first['shape'][0]}, D = {first['shape'][2]}, "
        f"{first['dtype']}, {document['machine']['threads']} threads; x: stopped, the next would "
        f"exceed {settings['limit_seconds']:g} s or {settings['limit_gib']:g} GiB",
        fontsize=9,
    )
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """As PNG with a palette: a quarter of the bytes, for the same lines."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    Image.open(buffer).convert("RGB").quantize(PALETTE).save(path, "PNG", optimize=True)


def draw_peer(axis: Any, rows: list[Row], quantity: str, label: str, look: dict[str, Any]) -> None:
    """One line, a cross at its end if the peer went no further."""
    points = [(r["shape"][1], r[quantity]) for r in rows if r.get(quantity)]
    if not points:
        return
    axis.plot(*zip(*points, strict=True), **look, label=label, lw=1.2)
    if any(row["failure"] for row in rows):
        axis.plot(*points[-1], "x", color=look["color"], markersize=11, mew=2)


def roofline(document: dict[str, Any], path: Path) -> None:
    """Multiply-adds per second against multiply-adds per byte, under the two ceilings."""
    plt = pyplot()
    rows = [row for row in document["results"] if "median_ms" in row]
    looks = style(rows)
    probe = [row for row in rows if row["peer"] == "torch.mm"]
    peak = max(row["gfma_per_s"] * row["median_ms"] / row["min_ms"] for row in probe)
    copies = [row["gb_per_s"] for row in rows if row["peer"] == "copy"]
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    points = [row for row in rows if row["peer"] in looks and "bytes" in row]
    for peer, look in looks.items():
        own = [row for row in points if row["peer"] == peer]
        x = [row["multiply_adds"] / row["bytes"] for row in own]
        axis.plot(
            x, [row["gfma_per_s"] for row in own], **look | {"linestyle": ""}, label=peer, alpha=0.8
        )
    intensity = [row["multiply_adds"] / row["bytes"] for row in points]
    ends = [min(intensity) / 2, max(intensity) * 2]
    for speed in (min(copies), max(copies)):
        x = sorted({*ends, min(max(peak / speed, ends[0]), ends[1])})
        label = f"copy {speed:.3g} GB/s, torch.mm {peak:.0f} GFMA/s"
        axis.plot(x, [min(peak, speed * place) for place in x], lw=1, color="grey", label=label)
    axis.set(xlabel="multiply-adds per byte of minimal traffic", ylabel="GFMA/s")
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save(figure, path)
