"""What a run leaves behind: numbers with their uncertainty, records and pictures."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

_JSON_COLUMNS = 220  # an epoch with everything that is measured of it


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a proportion p = successes / n, as given by Wilson (1927).

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        successes: right answers, 0 <= successes <= trials.
        trials: n >= 1.
        z: normal quantile; the default gives 95 % confidence.

    Returns:
        Lower and upper bound, both in [0, 1].

    Raises:
        ValueError: the counts are impossible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            "wilson_interval: counts must satisfy 0 <= successes <= trials and trials >= 1, got "
            f"{successes} of {trials}"
        )
    p = successes / trials
    center = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    names = ("torch", "lightning", "torchmetrics", "numpy", "paramixer")
    found = {distribution: _version(distribution) for distribution in names}
    return {"python": platform.python_version(), **found}


def write_json(record: dict[str, Any], path: Path) -> None:
    """Writes `record` so that a reader never sees half of it; an epoch takes a line."""
    partial = path.with_suffix(".partial")
    partial.write_text(_json(record, 0) + "\n")
    partial.replace(path)


def _json(value: Any, indent: int) -> str:
    """JSON in which whatever fits a line takes one."""
    line = json.dumps(value)
    if not isinstance(value, (dict, list)) or indent + len(line) <= _JSON_COLUMNS:
        return line
    inner = indent + 1
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {_json(v, inner)}" for k, v in value.items()]
    else:
        parts = [_json(v, inner) for v in value]
    body = f",\n{' ' * inner}".join(parts)
    ends = "{}" if isinstance(value, dict) else "[]"
    return f"{ends[0]}\n{' ' * inner}{body}\n{' ' * indent}{ends[1]}"


def plot_curve(epochs: Sequence[dict[str, float]], path: Path) -> None:
    """Draws loss and accuracy of training and validation over the epochs.

    Args:
        epochs: as collected by `Curve`.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            name = f"{part}_{metric}"  # which an epoch lacks that was not validated
            at = [epoch["epoch"] for epoch in epochs if name in epoch]
            values = [epoch[name] for epoch in epochs if name in epoch]
            axes.plot(at, values, marker=".", label=part)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def plot_mixing(
    product: Tensor,
    weights: Tensor,
    offsets: Sequence[Sequence[int]],
    row: int,
    path: Path,
    image: Tensor | None = None,
) -> None:
    """Draws what a mixer does with one sequence: the product of its factors, the links of one row.

    Args:
        product: (N, N), row i holding what position i takes from every other position.
        weights: (N, M, K), the link weights whose factors were multiplied.
        offsets: M lists of K offsets.
        row: the position whose links are drawn.
        path: of the PNG.
        image: (H, W) with H * W = N when the sequence is an image read row by row; the row of the
            product is then drawn as an image beside it.
    """
    rows = 1 if image is None else 2
    figure = Figure(figsize=(11, 4.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    _draw_signed(figure, axes[0, 0], product, "what the mixer applies: product of its factors")
    axes[0, 0].set(xlabel="takes from position", ylabel="position")
    axes[0, 0].axhline(row, color="black", linewidth=0.8, linestyle=":")
    _draw_links(figure, axes[0, 1], weights[row], offsets, row)
    if image is not None:
        width = image.shape[1]
        axes[1, 0].imshow(image.numpy(), cmap="gray")
        axes[1, 0].set_title(f"the sequence as an image, position {row} marked")
        _draw_signed(
            figure, axes[1, 1], product[row].view_as(image), f"what position {row} takes from where"
        )
        for panel in axes[1]:
            panel.plot(row % width, row // width, "o", markersize=9, fillstyle="none", color="lime")
    figure.savefig(path, dpi=110)


def _draw_signed(figure: Figure, axes: Any, matrix: Tensor, title: str) -> None:
    """An image with zero in white; logarithmic beyond the median entry, which the largest dwarf."""
    magnitude = matrix.abs()
    largest = float(magnitude.max()) or 1.0
    median = max(float(magnitude.median()), largest * 1e-6)
    picture = axes.imshow(
        matrix.numpy(), cmap="RdBu_r", norm=SymLogNorm(median, vmin=-largest, vmax=largest)
    )
    ticks = [-largest, -median, 0, median, largest]
    figure.colorbar(picture, ax=axes, shrink=0.8, ticks=ticks, format="{x:.2g}")
    axes.set_title(title)


def _draw_links(
    figure: Figure, axes: Any, weights: Tensor, offsets: Sequence[Sequence[int]], row: int
) -> None:
    """The links of one row, (M, K) weights: one line a factor, one dot a link where it reads."""
    factors, links = weights.shape
    largest = float(weights.abs().max()) or 1.0
    dots = axes.scatter(
        np.array(offsets).ravel(),
        np.repeat(np.arange(1, factors + 1), links),
        c=weights.flatten().numpy(),
        cmap="RdBu_r",
        vmin=-largest,
        vmax=largest,
        edgecolors="gray",
        s=60,
    )
    figure.colorbar(dots, ax=axes, shrink=0.8)
    axes.set_xscale("symlog", base=8, linthresh=1)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="offset of the link", ylabel="factor", yticks=range(1, factors + 1))
    axes.set_title(f"link weights of position {row}")


def _version(distribution: str) -> str:
    if distribution == "torch":
        return torch.__version__  # with the build tag, which the metadata may lack
    return metadata.version(distribution)
