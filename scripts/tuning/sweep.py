"""Variants of the CUDA kernels' traits: built, described, and, on a GPU, timed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuning import plans, resources, sass
from tuning.model import (
    MACHINES,
    Chain,
    Counts,
    backward_costs,
    forward_costs,
    microseconds,
)

KERNELS = plans.ROOT / "cuda"
SOURCES = ["kernels_f32.cu", "kernels_bf16.cu", "band_bf16.cu"]
# The sources that a struct of traits.h concerns.
CONCERNS = {"Traits": SOURCES, "TileTraits": SOURCES[:2], "BandKnobs": SOURCES[2:]}

Knobs = dict[str, str]  # such as {"TileTraits.kLeastSegment": "4"}

KIB = "* 1024"
# The one in the tree is the empty one. The others change one thing each, with what depends on it.
VARIANTS: list[Knobs] = [
    {},
    {"TileTraits.kLeastSegment": "4"},
    {"TileTraits.kBlocksAtOnce": "1056"},
    *({"TileTraits.kMostPieces": pieces} for pieces in ("2", "8")),
    {"TileTraits.kSharedBytes": f"113 {KIB}"},
    {"TileTraits.kSharedBytes": f"75 {KIB}", "TileTraits.kBlocksPerSM": "3"},
    {
        "TileTraits.kSharedBytes": f"56 {KIB}",
        "TileTraits.kThreads": "128",
        "TileTraits.kBlocksPerSM": "4",
    },
    {
        "TileTraits.kSharedBytes": f"227 {KIB}",
        "TileTraits.kThreads": "512",
        "TileTraits.kBlocksPerSM": "1",
    },
    *({"TileTraits.kWindowRows": rows} for rows in ("1", "4")),
    {"Traits.kBlocksPerSM": "3"},
    {"Traits.kBlocksPerSM": "4"},
    {"Traits.kThreads": "128", "Traits.kBlocksPerSM": "4"},
    {"Traits.kLinksInFlight": "2"},
    {"Traits.kLinksInFlight": "8"},
    {"BandKnobs.kRows": "256", "BandKnobs.kThreads": "128", "BandKnobs.kBlocksPerSM": "4"},
    {"BandKnobs.kRows": "256", "BandKnobs.kBlocksPerSM": "4"},
    {"BandKnobs.kThreads": "512", "BandKnobs.kBlocksPerSM": "1"},
]

# What a sweep times: the goals' middle shape and the small one, a whole ring of any links, and
# windows.
CASES = [
    Chain(8, 16384, 128, "cdil", 3, 14, "float32"),
    Chain(8, 16384, 128, "cdil", 3, 14, "bfloat16"),
    Chain(32, 1024, 64, "cdil", 3, 10, "bfloat16"),
    Chain(32, 1024, 64, "chord", 11, 10, "float32"),
    Chain(8, 16384, 128, "chord", 15, 14, "float32"),
    Chain(8, 16384, 128, "chord", 15, 14, "bfloat16"),
]


# Relative 2-norm errors of chains against products in float32.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


@dataclass
class Variant:
    """One set of knobs and what became of it."""

    knobs: Knobs
    folder: Path
    failure: str = ""
    entries: list[resources.Entry] = field(default_factory=list)
    objects: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.knobs.items()) or "as it is"

    def sources(self) -> list[str]:
        """Those that differ from the tree's."""
        if not self.knobs:
            return SOURCES
        concerned = {s for name in self.knobs for s in CONCERNS[name.partition(".")[0]]}
        return [source for source in SOURCES if source in concerned]


def parse_knobs(words: Sequence[str]) -> Knobs:
    """["TileTraits.kSegment=17"] as knobs."""
    knobs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name.partition(".")[0] not in CONCERNS:
            raise ValueError(f"a knob is STRUCT.NAME=VALUE, of {', '.join(CONCERNS)} (got {word})")
        knobs[name] = value
    return knobs


def edit(traits: str, knobs: Knobs) -> str:
    """The text of traits.h with other values."""
    for name, value in knobs.items():
        struct, _, member = name.partition(".")
        begin = traits.find(f"struct {struct} {{")
        end = traits.find("\n};", begin)
        pattern = rf"(static constexpr \w+ {re.escape(member)} =)[^;]*;"
        body, count = re.subn(pattern, rf"\g<1> {value};", traits[begin:end])
        if begin < 0 or count != 1:
            raise ValueError(f"traits.h has no knob {name}")
        traits = traits[:begin] + body + traits[end:]
    return traits


def prepare(root: Path, number: int, knobs: Knobs) -> Variant:
    """A copy of the kernels' folder with other traits."""
    variant = Variant(knobs, root / f"variant{number}")
    shutil.rmtree(variant.folder, ignore_errors=True)
    shutil.copytree(KERNELS, variant.folder, ignore=shutil.ignore_patterns("CMakeLists.txt"))
    traits = variant.folder / "traits.h"
    traits.write_text(edit(traits.read_text(), knobs))
    return variant


def compile_kernels(variant: Variant, source: str, architecture: str) -> Path:
    """One source as an object file with its report, unless it is there already."""
    target = variant.folder / f"{source}.o"
    command = ["nvcc", "-std=c++20", "-O3", "-Xptxas=-v", "-c", variant.folder / source]
    command += [f"-I{variant.folder}", f"-I{plans.ROOT / 'csrc'}", "-o", target]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(next((x for x in done.stderr.splitlines() if "error" in x), "nvcc"))
    report = Path(f"{target}.resources")
    report.write_text(done.stderr)
    return target


def build(variants: list[Variant], architecture: str, jobs: int) -> None:
    """Compiles what each variant has of its own, and takes the rest from the first one."""
    with ThreadPoolExecutor(jobs) as pool:
        work = [
            (variant, source, pool.submit(compile_kernels, variant, source, architecture))
            for variant in variants
            for source in variant.sources()
        ]
        for variant, _, future in work:
            try:
                path = future.result()
                variant.objects.append(path)
                variant.entries += resources.read(Path(f"{path}.resources"))
            except RuntimeError as error:
                variant.failure = f"does not compile: {error}"
    for variant in variants:
        own = {path.name for path in variant.objects}
        variant.objects += [path for path in variants[0].objects if path.name not in own]


def counted(found: dict[str, list[sass.Loop]], segment: int) -> Counts:
    """The model's counts with those of the hot loops as they were compiled.

    Walks through a segment are no loops: their counts stay those of the model.
    """
    counts = Counts(segment=segment)
    for links, own in counts.bands.items():
        band = found.get(f"band bf16 K={links}", [])
        multiply, compose = sass.shortest(band, "HMMA"), sass.shortest(band, "FFMA")
        if multiply and compose:
            held = max(loop["HMMA"] for loop in band) / own.matrices  # groups of 16 rows
            counts.bands[links] = replace(own, multiply=multiply / held, compose=compose)
    return counts


def describe(variant: Variant, tool: str | None) -> dict[str, Any]:
    """Registers, blocks at once and predicted times of a variant that was built."""
    program = plans.build(variant.folder / "plans", variant.folder)
    made, answer = plans.ask(program, CASES)
    counts = Counts(segment=answer["segment"])
    if tool is not None:
        counts = counted(sass.dump(tool, variant.objects), answer["segment"])
    rows: dict[str, Any] = {"spills": [e.kernel for e in variant.entries if e.spills()]}
    for entry in variant.entries:
        launch = answer["kernels"][resources.family(entry.kernel)]
        blocks, _ = resources.occupancy(entry, launch)
        rows[entry.kernel] = f"{entry.registers} x {blocks}"
    for chain, plan in zip(CASES, made, strict=True):
        forward = microseconds(forward_costs(chain, plan["forward"], counts), MACHINES[1])
        back_costs = backward_costs(chain, plan["backward"], plan["cuts"], counts)
        back = microseconds(back_costs, MACHINES[1])
        rows[plans.argument(chain)] = {"forward": forward, "backward": back}
    return rows


def measure(variant: Variant) -> dict[str, Any]:
    """The times of a variant's launches on the GPU here."""
    program = variant.folder / "kernel_benchmark"
    source = Path(__file__).with_name("kernel_benchmark.cpp")
    folders = [variant.folder, plans.ROOT / "csrc", plans.ROOT / "csrc" / "include"]
    command = ["nvcc", "-std=c++20", "-O2", *(f"-I{folder}" for folder in folders)]
    subprocess.run([*command, source, *variant.objects, "-o", program], check=True)
    asked = [plans.argument(chain) for chain in CASES]
    done = subprocess.run([program, *asked], check=True, capture_output=True, text=True)
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


def wrong(measured: dict[str, Any]) -> list[str]:
    """The cases whose results are not those of products."""
    limits = {plans.argument(chain): TOLERANCE[chain.dtype] for chain in CASES}
    return [case for case, row in measured.items() if row["error"] > limits[case]]
