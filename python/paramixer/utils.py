"""Paths for building against this installation from C++."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

cmake_prefix_path: str = str(_PACKAGE / "share" / "cmake")
"""For CMAKE_PREFIX_PATH, so that ``find_package(Paramixer)`` finds this installation."""

include_path: str = str(_PACKAGE / "include")
"""The folder of ``paramixer/paramixer.h``."""

library_path: str = str(_PACKAGE / "lib" / "libparamixer.so")
"""The operator library. A C++ program that runs saved models links or opens it."""
