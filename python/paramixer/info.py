"""What this installation is (``python -m paramixer.info``), and how it runs a chain (`plan`)."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import SupportsIndex

import torch

from paramixer import _C, _build, _load
from paramixer._checks import check_choice, check_offsets, check_size
from paramixer.reference import RESIDUALS

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MOST_LINKS = 64


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether kernels built for a CMake list of architectures run on a GPU.

    Args:
        capability: the GPU's compute capability, such as (9, 0).
        architectures: such as "80-real;90-real;120"; machine code runs on the same major and at
            least that minor, and an entry without "-real" holds PTX for everything newer.
    """
    for entry in filter(None, architectures.split(";")):
        number, _, kind = entry.partition("-")
        major, minor = divmod(int(number.rstrip("af")), 10)
        if major == capability[0] and minor <= capability[1] and kind != "virtual":
            return True
        if kind != "real" and (major, minor) <= capability:
            return True
    return False


def cuda_status() -> str:
    """Whether CUDA kernels are built, why, and whether they can run here, in words."""
    if not _build.CUDA_KERNELS:
        return _build.CUDA_DECISION
    if not torch.cuda.is_available():
        return f"{_build.CUDA_DECISION}; not usable: torch finds no GPU here"
    usable = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        verb = "usable" if runs_on(capability, _build.CUDA_ARCHITECTURES) else "NOT usable"
        name = torch.cuda.get_device_name(index)
        usable.append(f"{verb} on {name} (sm_{capability[0]}{capability[1]})")
    return "; ".join([_build.CUDA_DECISION, *usable])


def collect() -> dict[str, str]:
    """The facts that a report of a problem or a benchmark needs, by name."""
    return {
        "paramixer": _build.VERSION,
        "torch": f"{torch.__version__} (built for {_build.TORCH})",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiler": _build.COMPILER,
        "cpu instruction set": _load.cpu_instruction_set(),
        "threads": str(torch.get_num_threads()),
        "cuda kernels": cuda_status(),
    }


def plan(
    length: int,
    channels: int,
    offsets: Sequence[Sequence[SupportsIndex]],
    residual: str = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> str:
    """How the kernels of a device take a chain of factors through the rows, in words.

    The rows of :func:`paramixer.mix_chain` lie on a ring of N positions. A sweep passes over them
    once, with one factor or several. A factor whose links are all multiples of a step cuts the ring
    into classes, rings of their own; where the later factors keep to the classes too, the sweep
    deals its rows to them, and each class runs through the rest of the chain alone, in a nearer
    cache. This structure is found from the offsets, whichever protocol they come from.

    On a GPU, rows keep their order. A launch brings tiles on chip, whole rings or pieces with a few
    rows more on either side (the halo, which their links reach), and takes them through several
    factors between one read and one write. A factor whose links lead too far for that (CHORD on a
    long ring) is a launch in tiles with windows: rows around a tile that serve the nearer links on
    chip, while the others read memory. Where no tile pays, a factor is a product of its own.
    Of CDIL in bfloat16 or float16, tensor cores take factors together as bands, unless the
    environment says PARAMIXER_CUDA_BANDS=off (see :func:`paramixer.mix_chain`). The plan is that of
    compute capability 9.0 and 10.0; GPUs with less shared memory run more in tiles.

    Args:
        length: N, the positions of the ring, at least 1.
        channels: D, at least 1.
        offsets: M lists of K integers of any sign and size, 1 <= K <= 64.
        residual: "none", "previous" or "initial".
        dtype: float64, float32, bfloat16 or float16.
        device: "cpu" or "cuda"; neither has to be at hand.

    Returns:
        One line for each sweep or launch. Backward makes those of the CPU twice: first to compute
        the states inside the chain again, then in reverse order for the gradients. On a GPU a
        training pass also ends launches where it saves states (`save="boundaries"`), and backward
        has shorter ones of its own.

    Raises:
        ValueError: a size, a residual, a device or a number of offsets out of its range.
        RuntimeError: PARAMIXER_CUDA_BANDS is neither on nor off, for a GPU.
        TypeError: sizes or offsets that are not integers, another dtype.
    """
    length = check_size("plan", "length", length)
    channels = check_size("plan", "channels", channels)
    factors = check_offsets("plan", "offsets", offsets)
    counts = [len(factor) for factor in factors]
    if not counts or set(counts) != {counts[0]} or not 1 <= counts[0] <= _MOST_LINKS:
        raise ValueError(
            f"plan: offsets must hold at least one list, each of the same number of integers, at "
            f"least 1 and at most {_MOST_LINKS} (got lists of {counts})"
        )
    check_choice("plan", "residual", residual, RESIDUALS)
    if dtype not in _DTYPES:
        raise TypeError(f"plan: dtype must be one of {_DTYPES} (got {dtype})")
    kind = torch.device(device).type
    check_choice("plan", "device", kind, ("cpu", "cuda"))
    flat = [offset % length for factor in factors for offset in factor]
    if kind == "cuda":
        launches = _C.cuda_chain_sweeps(
            length,
            channels,
            counts[0],
            flat,
            RESIDUALS.index(residual),
            _DTYPES.index(dtype),
        )
        lines = [
            f"  launch {number}: {_describe_launch(launch, channels)}"
            for number, launch in enumerate(launches, 1)
        ]
        return "\n".join([f"{len(launches)} launches:", *lines])
    group = min(_C.chain_group(_DTYPES.index(dtype)), channels)
    lines = [f"at most {group} of {channels} channels at a time:"]
    sweeps = _C.chain_sweeps(length, counts[0], flat, RESIDUALS.index(residual))
    following = [*sweeps[1:], None]
    for number, (sweep, after) in enumerate(zip(sweeps, following, strict=True), 1):
        lines.append(f"  sweep {number}: {_describe_sweep(sweep, after)}")
    return "\n".join(lines)


def _describe_launch(launch: _C.Sweep, channels: int) -> str:
    """What a launch does, and in which tiles."""
    last = launch.first + launch.factors - 1
    if launch.tile == 0:
        return f"factor {last} as a product of its own"
    text = f"factor {last}" if launch.factors == 1 else f"factors {launch.first} to {last}"
    text += " as bands" if launch.bands else ""
    text += f" in tiles of {min(launch.channels, channels)} channels and "
    whole = launch.tile == launch.ring
    text += f"all {launch.ring} rows" if whole else f"{launch.tile} of {launch.ring} rows"
    if launch.window:
        text += f" with windows of {launch.window} rows"
    elif launch.halo:
        text += f" with halos of {launch.halo} rows"
    if launch.classes > 1:
        text += f", along each of {launch.classes} rings"
    elif launch.step > 1:
        text += f" in steps of {launch.step}"
    return text


def _describe_sweep(sweep: _C.Sweep, following: _C.Sweep | None) -> str:
    """What a sweep does, and in which order it leaves the rows for the one that follows."""
    last = sweep.first + sweep.factors - 1
    text = f"factor {last}" if sweep.factors == 1 else f"factors {sweep.first} and {last} together"
    if sweep.classes > 1:
        text += f" along each of {sweep.classes} rings of {sweep.ring} rows"
    else:
        text += f" along the whole ring of {sweep.ring} rows"
        if sweep.step > 1:
            text += f" in steps of {sweep.step}"
    if following is not None and sweep.deal > 1:
        parts = following.classes // sweep.classes
        if parts > 1:
            text += f"; the result is dealt to {parts} classes of {following.ring} rows"
        else:
            text += f"; the result is dealt to the order of steps of {following.step}"
    return text


def main() -> None:
    """Prints the facts, one a line."""
    facts = collect()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


if __name__ == "__main__":
    main()
