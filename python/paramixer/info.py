"""What this installation is: ``python -m paramixer.info``."""

from __future__ import annotations

import platform

import torch

from paramixer import _build, _load


def cuda_status() -> str:
    """Whether CUDA kernels are built, and whether they can run here, in words."""
    if not _load.has_cuda():
        return "not built (this is a CPU-only build)"
    built = f"built with nvcc {_build.NVCC} for {_build.CUDA_ARCHITECTURES}"
    if not torch.cuda.is_available():
        return f"{built}; not usable: torch finds no GPU here"
    major, minor = torch.cuda.get_device_capability()
    return f"{built}; usable on {torch.cuda.get_device_name()} (sm_{major}{minor})"


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
