"""The configure step: what it decides, refuses and says; and which sources may include what.

Nothing is compiled here. Compilers are looked at by CMake itself; nvcc and torch are stand-ins.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
GOOGLETEST_SOURCES = Path("/usr/src/googletest")  # where Debian's package googletest puts them

# Parts of a configure that a test does without.
KERNELS_ONLY = {"PARAMIXER_OPS": "OFF"}
NO_PYTHON_MODULE = {"PARAMIXER_PYTHON": "OFF"}
HIDDEN = "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"


@pytest.fixture
def configure(tmp_path):
    """Configures the repository: configure({option: value}, variable=..) -> exit code, output."""

    def run(options, **environment):
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH_PATH) else []
        options = {"Python_EXECUTABLE": sys.executable, **options}
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CUDA", "CMAKE", "PARAMIXER", "PYTHON"))
        }
        process = subprocess.run(
            [shutil.which("cmake", path=SEARCH_PATH), "-S", ROOT, "-B", tmp_path / "tree"]
            + generator
            + [f"-D{name}={value}" for name, value in options.items()],
            env={**inherited, "PATH": SEARCH_PATH, **environment},
            capture_output=True,
            text=True,
        )
        # CMake wraps the lines of an error.
        return process.returncode, " ".join((process.stdout + process.stderr).split())

    return run


@pytest.fixture
def toolkit(tmp_path):
    """Makes a CUDA_HOME whose nvcc says toolkit(text) for its version, and can do nothing else."""

    def make(text):
        nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\necho '{text}'\n")
        nvcc.chmod(0o755)
        return str(nvcc.parent.parent)

    return make


@pytest.fixture
def torch_folder(tmp_path):
    """Makes what CMake reads of a torch: torch_folder(version, CUDA version or None)."""

    def make(version, cuda):
        folder = tmp_path / "torch"
        (folder / "include" / "c10").mkdir(parents=True)
        (folder / "lib").mkdir()
        for name in ("torch", "torch_cpu", "c10", "c10_cuda"):
            (folder / "lib" / f"lib{name}.so").touch()
        local = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
        (folder / "version.py").write_text(
            f"__version__ = '{version}+{local}'\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
        )
        return {"TORCH_INSTALL_PREFIX": folder, **NO_PYTHON_MODULE}

    return make


@pytest.fixture
def no_toolkit():
    """Options that hide every CUDA toolkit of this machine."""
    folders = [*SEARCH_PATH.split(os.pathsep), "/usr/local/cuda/bin"]
    hidden = [folder for folder in folders if (Path(folder) / "nvcc").exists()]
    if any((Path(folder) / "c++").exists() for folder in hidden):
        pytest.skip("nvcc lies in one folder with the C++ compiler: it cannot be hidden alone")
    return {"CMAKE_IGNORE_PATH": ";".join(hidden)}


@pytest.fixture
def bare_python(tmp_path):
    """The option that names a Python without torch."""
    venv.create(tmp_path / "bare", symlinks=True)
    return {"Python_EXECUTABLE": tmp_path / "bare" / "bin" / "python"}


def release(version):
    return f"Cuda compilation tools, release {version}, V{version}.0"


@pytest.mark.parametrize("value", ["OFF", "off"])
def test_cuda_off(configure, toolkit, value):
    code, output = configure(
        {**KERNELS_ONLY, "PARAMIXER_CUDA": value}, CUDA_HOME=toolkit(release("13.0"))
    )
    assert code == 0, output
    assert "paramixer: CPU only: PARAMIXER_CUDA=OFF" in output


@pytest.mark.parametrize("value", ["0", "1", "yes", ""])
def test_cuda_must_be_auto_on_or_off(configure, value):
    code, output = configure({**KERNELS_ONLY, "PARAMIXER_CUDA": value})
    assert code != 0
    assert f"paramixer: PARAMIXER_CUDA must be AUTO, ON or OFF (got '{value}')" in output


def test_hidden_toolkit(configure, no_toolkit):
    code, output = configure({**KERNELS_ONLY, **no_toolkit})
    assert code == 0, output
    assert f"paramixer: CPU only: {HIDDEN}" in output


def test_hidden_toolkit_is_fatal_when_cuda_is_wanted(configure, no_toolkit):
    code, output = configure({**KERNELS_ONLY, **no_toolkit, "PARAMIXER_CUDA": "on"})
    assert code != 0
    assert f"paramixer: PARAMIXER_CUDA=ON, but {HIDDEN}" in output


def test_cpu_build_beside_a_cuda_torch_without_a_toolkit(configure, no_toolkit, torch_folder):
    code, output = configure({**torch_folder("2.11.0", "13.0"), **no_toolkit})
    assert code == 0, output
    assert f"paramixer: CPU only: {HIDDEN}" in output


@pytest.mark.parametrize("wanted", ["AUTO", "ON"])
@pytest.mark.parametrize(
    ("text", "cuda", "obstacle"),
    [
        (release("12.4"), "12.8", "nvcc 12.4 is older than 12.8"),
        (release("12.9"), "13.0", "nvcc 12.9 does not match torch's CUDA 13.0"),
        (release("13.0"), "12.8", "nvcc 13.0 does not match torch's CUDA 12.8"),
        (release("13.0"), None, "torch 2.11.0 is a CPU build"),
        ("no licence", "13.0", "toolkit/bin/nvcc --version names no release"),
    ],
    ids=["old", "older major", "newer major", "torch for CPU", "no version"],
)
def test_toolkit_that_does_not_serve(
    configure, toolkit, torch_folder, wanted, text, cuda, obstacle
):
    code, output = configure(
        {**torch_folder("2.11.0", cuda), "PARAMIXER_CUDA": wanted}, CUDA_HOME=toolkit(text)
    )
    said = "PARAMIXER_CUDA=ON, but " if wanted == "ON" else "CPU only: "
    assert (code == 0) == (wanted == "AUTO"), output
    assert re.search(rf"paramixer: {said}\S*{re.escape(obstacle)}", output), output


@pytest.mark.parametrize(("nvcc", "cuda"), [("12.8", "12.9"), ("13.3", "13.0")])
def test_toolkit_of_the_same_major_serves(configure, toolkit, torch_folder, nvcc, cuda):
    """The stand-in cannot compile, so that the configure fails after its decision."""
    options = {**torch_folder("2.11.0", cuda), "PARAMIXER_CUDA_ARCHITECTURES": "90"}
    _, output = configure(options, CUDA_HOME=toolkit(release(nvcc)))
    assert f"paramixer: CUDA kernels are built with nvcc {nvcc} for 90" in output


def test_old_torch_is_refused(configure, torch_folder):
    code, output = configure(torch_folder("2.10.1", None))
    assert code != 0
    assert "paramixer: torch must be 2.11 or newer (found 2.10.1)" in output


def test_missing_torch_says_what_to_run(configure, bare_python):
    code, output = configure({**bare_python, **NO_PYTHON_MODULE})
    assert code != 0
    assert "run: pip install torch" in output


def test_kernels_need_no_torch(configure, bare_python):
    code, output = configure({**bare_python, **KERNELS_ONLY, "PARAMIXER_CUDA": "OFF"})
    assert code == 0, output


def test_googletest_from_sources(configure):
    if not GOOGLETEST_SOURCES.exists():
        pytest.skip(f"no GoogleTest sources in {GOOGLETEST_SOURCES} (apt install googletest)")
    code, output = configure(
        {
            **KERNELS_ONLY,
            "PARAMIXER_CUDA": "OFF",
            "PARAMIXER_TESTS": "ON",
            "CMAKE_DISABLE_FIND_PACKAGE_GTest": "ON",
            "FETCHCONTENT_SOURCE_DIR_GOOGLETEST": GOOGLETEST_SOURCES,
        }
    )
    assert code == 0, output
    assert "paramixer: no GoogleTest is installed; tests use the one that FetchContent" in output
    assert str(GOOGLETEST_SOURCES) in output


def sources(*folders):
    suffixes = {".h", ".inl", ".cpp", ".cuh", ".cu"}
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in suffixes]
    assert len(files) > 3
    return files


def included(text):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', text, re.MULTILINE)


def test_kernels_include_no_torch():
    """Nor the dispatcher layer, whose headers do; only the files that register a key may."""
    for file in sources("csrc/core", "csrc/cpu", "cuda"):
        if re.search(r"_(cpu|cuda)\.cpp$", file.name):
            continue
        for name in included(file.read_text()):
            assert not re.match(r"(torch|ATen|c10|pybind11|ops|paramixer)/", name), (file, name)


def test_csrc_includes_no_cuda():
    for file in sources("csrc"):
        text = file.read_text()
        if file == ROOT / "csrc" / "core" / "numeric.h":  # asks nvcc for its 16-bit conversions
            text, guarded = re.subn(r"(?s)#if defined\(__CUDACC__\)\n.*?\n#else\n", "", text)
            assert guarded == 1
        for name in included(text):
            assert not re.search(r"(^|/)cuda|\.cuh$", name), (file, name)
