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
        if torch_minor() is None:
            raise SystemExit(TORCH_MISSING)
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise SystemExit("paramixer: cmake was not found; run: pip install cmake ninja")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": Path(self.get_ext_fullpath("paramixer._C")).resolve().parent,
            "Python_EXECUTABLE": sys.executable,
            "PARAMIXER_CUDA": os.environ.get("PARAMIXER_CUDA", "AUTO"),
            "PARAMIXER_EDITABLE": "ON" if self.editable_mode else "OFF",
        }
        if "PARAMIXER_CUDA_ARCHITECTURES" in os.environ:
            options["PARAMIXER_CUDA_ARCHITECTURES"] = os.environ["PARAMIXER_CUDA_ARCHITECTURES"]
        tree = ROOT / "build" / tree_name()
        environment = dict(os.environ)
        if ninja is not None and generator_of(tree) in (None, "Ninja"):
            environment["CMAKE_GENERATOR"] = "Ninja"
            options["CMAKE_MAKE_PROGRAM"] = ninja  # the tree may have been made with another one
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.check_call([cmake, "-S", ROOT, "-B", tree, *arguments], env=environment)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        targets = ["--target", "paramixer", "--target", "_C"]
        subprocess.check_call([cmake, "--build", tree, "--parallel", jobs, *targets])
        subprocess.check_call([cmake, "--install", tree])


def tree_name() -> str:
    """The build tree, below build/: one per Python and torch."""
    return f"cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch_minor()}"


def find_tool(name: str) -> str | None:
    """A program of this environment, else of the PATH."""
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))


def generator_of(tree: Path) -> str | None:
    """The generator that a build tree was configured with; None for a new one."""
    cache = tree / "CMakeCache.txt"
    match = (
        re.search(r"CMAKE_GENERATOR:INTERNAL=(.*)", cache.read_text()) if cache.exists() else None
    )
    return match[1] if match else None


# Where setuptools gathers a wheel: emptied first, or it would keep modules that no longer exist.
STAGE = ROOT / "build" / f"wheel-{tree_name()}"
shutil.rmtree(STAGE, ignore_errors=True)

setup(
    version=version(),
    install_requires=dependencies(),
    ext_modules=[Extension("paramixer._C", [])],
    cmdclass={"build_ext": CMakeBuild},
    options={"build": {"build_base": str(STAGE)}},
)
