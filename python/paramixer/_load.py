"""Loads the C++ library, after checking that it was built for the torch that is running."""

from __future__ import annotations

import torch

try:
    from paramixer import _build
except ImportError as error:
    raise ImportError(
        "paramixer is not built here; in its folder run: pip install --no-build-isolation -e ."
    ) from error


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _major(version: str | None) -> str:
    return (version or "none").split(".")[0]


def check_torch(running: str, running_cuda: str | None) -> None:
    """Refuses to load a library that was built for another torch.

    C++ symbols change between torch's minor versions; without this check the user would see an
    undefined symbol.

    Args:
        running: the version of the torch in use.
        running_cuda: the CUDA version that torch was built with, None for a CPU build.

    Raises:
        ImportError: the torch minor differs from the one built for, or, for a build with CUDA
            kernels, the CUDA major does.
    """
    rebuild = (
        "rebuild paramixer for it: pip install --no-build-isolation --force-reinstall --no-deps ."
    )
    if _minor(running) != _minor(_build.TORCH):
        raise ImportError(
            f"paramixer {_build.VERSION} was built for torch {_minor(_build.TORCH)}, but torch "
            f"{running} is running; install torch=={_minor(_build.TORCH)}.*, or {rebuild}"
        )
    built_cuda = _build.TORCH_CUDA
    if _build.CUDA_KERNELS and _major(built_cuda) != _major(running_cuda):
        raise ImportError(
            f"paramixer {_build.VERSION} was built for torch with CUDA {built_cuda}, but the "
            f"running torch {running} has CUDA {running_cuda}; {rebuild}"
        )


check_torch(torch.__version__, torch.version.cuda)

from paramixer import _C  # noqa: E402

__version__: str = _build.VERSION
has_cuda = _C.has_cuda
cpu_instruction_set = _C.cpu_instruction_set
