"""Builds and asks the program `plans` (plans.cpp), and the cases that predictions are made for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.model import Chain

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")

SHAPES = [(32, 1024, 64), (16, 4096, 64), (8, 16384, 128), (1, 131072, 256), (1, 1048576, 64)]
PROTOCOLS = [("cdil", 3), ("cdil", 9), ("chord", None)]
DTYPES = ["float32", "bfloat16"]


def factors(length: int) -> int:
    """M of the protocols: ceil(log2 N)."""
    return (length - 1).bit_length()


def chains() -> list[Chain]:
    """Every shape and dtype of the goals, with each protocol."""
    made = []
    for protocol, links in PROTOCOLS:
        for batch, length, channels in SHAPES:
            count = factors(length)
            for dtype in DTYPES:
                own = links or count + 1
                made.append(Chain(batch, length, channels, protocol, own, count, dtype))
    return made


def argument(chain: Chain) -> str:
    """How `plans` is asked for a chain."""
    shape = f"{chain.batch},{chain.length},{chain.channels}"
    return f"{shape},{chain.protocol},{chain.links},{chain.dtype},none"


def build(program: Path, kernels: Path = ROOT / "cuda") -> Path:
    """Compiles `plans` with the traits in the folder `kernels`."""
    program.parent.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    folders = [kernels, ROOT / "csrc", ROOT / "csrc" / "include"]
    options = ["-std=c++20", "-O1", *(f"-I{folder}" for folder in folders)]
    subprocess.run([compiler, *options, SOURCE, "-o", program], check=True)
    return program


def ask(program: Path, asked: Sequence[Chain]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The plans of these chains, and what the program says besides."""
    command = [program, *map(argument, asked)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [answer["cases"][argument(chain)] for chain in asked], answer
