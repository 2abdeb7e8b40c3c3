"""Runs CMake, which is the only description of the build. Everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_MISSING = (
    "paramixer: torch must be installed before paramixer is built; run: pip install torch numpy, "
    "then: pip install --no-build-isolation ."
)


def version() -> str:
    """The project version, from CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    return re.search(r"project\(paramixer VERSION ([0-9.]+)", text)[1]


def torch_minor() -> str | None:
    """Such as "2.11" for the torch that would be built against; None where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return None
    text = (Path(spec.submodule_search_locations[0]) / "version.py").read_text()
    return re.search(r"__version__ = '([0-9]+\.[0-9]+)", text)[1]


def dependencies() -> list[str]:
    """A built package runs with the torch minor it was built for, and with no other."""
    minor = torch_minor()
    return [f"torch=={minor}.*" if minor else "torch>=2.11", "numpy"]


class CMakeBuild(build_ext):
    """Configures, builds and installs with CMake in one fixed build tree per Python and torch."""

    def run(self) -> None:
        """Replaces the compilation that setuptools would do."""
        minor = torch_minor()
        if minor is None:
            raise SystemExit(TORCH_MISSING)
        package = Path(self.get_ext_fullpath("paramixer._C")).resolve().parent
        tree = ROOT / "build" / f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{minor}"
        cmake = shutil.which("cmake", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
        if cmake is None:
            raise SystemExit("paramixer: cmake was not found; run: pip install cmake ninja")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": package,
            "Python_EXECUTABLE": sys.executable,
            "PARAMIXER_CUDA": os.environ.get("PARAMIXER_CUDA", "AUTO"),
            "PARAMIXER_EXTRA_RPATH": self.torch_library_paths() if self.editable_mode else "",
            "PARAMIXER_TESTS": "OFF",
        }
        if "PARAMIXER_CUDA_ARCHITECTURES" in os.environ:
            options["PARAMIXER_CUDA_ARCHITECTURES"] = os.environ["PARAMIXER_CUDA_ARCHITECTURES"]
        generator = (
            ["-G", "Ninja"]
            if shutil.which("ninja") and not (tree / "CMakeCache.txt").exists()
            else []
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.check_call([cmake, "-S", ROOT, "-B", tree, *generator, *arguments])
        subprocess.check_call([cmake, "--build", tree, "--parallel", jobs])
        subprocess.check_call([cmake, "--install", tree])

    @staticmethod
    def torch_library_paths() -> str:
        """Where an editable install, which does not lie beside torch, finds torch's libraries."""
        torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
        return f"{torch}/lib;{torch.parent}/nvidia/cu13/lib"


setup(
    version=version(),
    install_requires=dependencies(),
    ext_modules=[Extension("paramixer._C", [])],
    cmdclass={"build_ext": CMakeBuild},
)
