"""Factorizes a square matrix into sparse factors and draws how well that went.

    python scripts/factorize.py picture.png                      # grey values of its middle square
    python scripts/factorize.py matrix.npy --compare             # beside truncated SVD and Monarch
    python scripts/factorize.py edges.csv --compare --seeds 0 1 2 3 4
    python scripts/factorize.py --study scripts/configs/factorize/study.toml

Opponents store exactly as many values. Written are a picture and the factors of the best seed
(`paramixer.SparseFactorization.load`), to runs/factorize/ or where --out says.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import tomllib
import warnings
from pathlib import Path

MISSING = "factorize: the package {} is missing. Run: pip install paramixer[factorize]"

try:
    import numpy as np
    import paramixer
    import torch
    from factorizing import matrices, opponents, picture
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(MISSING.format(error.name))
except ImportError as error:
    sys.exit(f"factorize: {error}")

console = Console()


def main() -> None:
    """Factorizes what the command line says."""
    arguments = parse()
    try:
        if arguments.study:
            study(arguments.study)
        else:
            single(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(MISSING.format(error.name))
    except (OSError, ValueError, TypeError) as error:
        sys.exit(str(error))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", type=Path, help="an image, .npy, .mtx or .csv of edges")
    source.add_argument("--study", type=Path, metavar="TOML", help="many matrices; writes a table")
    parser.add_argument("--compare", action="store_true", help="with truncated SVD and Monarch")
    parser.add_argument("--factors", type=int, help="M; default ceil(log2 N)")
    parser.add_argument("--protocol", choices=("chord", "cdil"), default="chord")
    parser.add_argument("--links", type=int, help="K; default: the protocol's")
    parser.add_argument("--optimizer", choices=("lbfgs", "adam"), default="lbfgs")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--float32", action="store_true", help="half the memory, less exact")
    parser.add_argument("--out", type=Path, default=Path("runs/factorize"), help="folder")
    return parser.parse_args()


def single(arguments: argparse.Namespace) -> None:
    """One matrix, several seeds."""
    matrix = matrices.read(arguments.file)
    target = torch.from_numpy(np.ascontiguousarray(matrix))
    if arguments.float32:
        target = target.float()
    names = ("factors", "protocol", "links", "optimizer", "iterations")
    options = {name: getattr(arguments, name) for name in names}
    runs = [
        paramixer.factorize(target, seed=seed, progress=True, **options) for seed in arguments.seeds
    ]
    best = min(runs, key=lambda run: run.error)
    approximations = {"sparse factors": best.to_dense().double().numpy()}
    if arguments.compare:
        approximations |= compared(matrix, best.numbers)

    norm = np.linalg.norm(matrix)
    table = Table(title=f"{arguments.file.name}: {best.numbers:,} numbers for {matrix.size:,}")
    for column in ("", "error", "relative"):
        table.add_column(column, justify="right" if column else "left")
    for seed, run in zip(arguments.seeds, runs, strict=True):
        state = "converged" if run.converged else f"{run.iterations} iterations"
        table.add_row(f"sparse factors, seed {seed} ({state})", *errors(run.error, norm))
    median = statistics.median(run.error for run in runs)
    table.add_row("sparse factors, median", *errors(median, norm))
    for name, approximation in list(approximations.items())[1:]:
        table.add_row(name, *errors(np.linalg.norm(matrix - approximation), norm))
    console.print(table)

    stem = arguments.out / arguments.file.stem
    picture.draw(stem.with_suffix(".png"), matrix, approximations)
    best.save(stem.with_suffix(".safetensors"))
    console.print(f"Written: {stem}.png, {stem}.safetensors")


def compared(matrix: np.ndarray, numbers: int) -> dict[str, np.ndarray]:
    """The opponents' approximations that store this many numbers."""
    found = {"truncated SVD": opponents.truncated_svd(matrix, numbers)}
    blocks = opponents.monarch(matrix, numbers)
    return found if blocks is None else found | {"Monarch": blocks}


def errors(error: float, norm: float) -> tuple[str, str]:
    """An error as it stands in tables, and relative to the norm of the matrix."""
    return f"{error:.6g}", f"{error / norm:.4f}" if norm else "-"


def study(path: Path) -> None:
    """Every matrix of the study at every budget, and the table of all."""
    config = tomllib.loads(path.read_text())
    seeds, result = config.pop("seeds"), Path(config.pop("result"))
    rows = [
        "| matrix (N) | numbers | iterations | plain L-BFGS | best | median | seconds a seed "
        "| truncated SVD | Monarch | best / SVD |",
        "|" + "---|" * 10,
    ]
    for name, entry in config.items():
        matrix = matrices.STUDY[name]()
        for budget, listed in entry["budgets"].items():
            rows.append(study_row(name, matrix, int(budget), listed, seeds))
            console.print(rows[-1], soft_wrap=True)
    chosen = ", ".join(map(str, seeds))
    result.write_text(
        "Frobenius errors at exactly equal numbers of stored values; float64, Chord links, seeds "
        f"{chosen}.\n`python scripts/factorize.py --study {path}` writes this table.\n"
        "Bold: the lower of sparse factors and truncated SVD. Monarch chooses by the data "
        "which terms it keeps, and\nthat choice is not counted: small, very sparse matrices suit "
        "it. Seconds: on 2 threads.\n\n" + "\n".join(rows) + "\n"
    )


def study_row(name: str, matrix: np.ndarray, budget: int, listed: float, seeds: list[int]) -> str:
    """The results of one matrix at one budget."""
    length = len(matrix)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the budget is part of the table
        runs = [
            paramixer.factorize(
                matrix, links=length.bit_length(), iterations=budget, tolerance=0, seed=seed
            )
            for seed in seeds
        ]
    seconds = (time.perf_counter() - begin) / len(seeds)
    found = [run.error for run in runs]
    opponent = {
        key: float(np.linalg.norm(matrix - approximation))
        for key, approximation in compared(matrix, runs[0].numbers).items()
    }
    best, svd = min(found), opponent["truncated SVD"]
    cells = [
        f"{name} ({length})",
        f"{runs[0].numbers:,}",
        f"{budget:,}",
        "-" if math.isnan(listed) else f"{listed:.6g}",
        f"**{best:.6g}**" if best < svd else f"{best:.6g}",
        f"{statistics.median(found):.6g}",
        f"{seconds:.1f}",
        f"{svd:.6g}" if best < svd else f"**{svd:.6g}**",
        f"{opponent['Monarch']:.6g}" if "Monarch" in opponent else "-",
        f"{best / svd:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
