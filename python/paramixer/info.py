"""What this installation is: ``python -m paramixer.info``."""

from __future__ import annotations

import platform

import torch

from paramixer import _build, _load


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


def main() -> None:
    """Prints the facts, one a line."""
    facts = collect()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


if __name__ == "__main__":
    main()
