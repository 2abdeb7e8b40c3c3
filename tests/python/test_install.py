"""The installed package: what a wheel holds, what it says of itself, what it refuses."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import paramixer
import pytest
import torch
from paramixer import _build, _load, info

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_running_torch_is_accepted():
    _load.check_torch(torch.__version__, torch.version.cuda)
    _load.check_torch(f"{_build.TORCH}.post1+cpu", torch.version.cuda)


def test_another_torch_minor_is_refused():
    with pytest.raises(
        ImportError, match=r"built for torch [\d.]+, but torch 2.99.1\+cu130 is runn"
    ):
        _load.check_torch("2.99.1+cu130", "13.0")


def test_another_cuda_major_is_refused(monkeypatch):
    monkeypatch.setattr(_build, "CUDA_KERNELS", True)
    monkeypatch.setattr(_build, "TORCH_CUDA", "13.0")
    _load.check_torch(_build.TORCH, "13.2")
    with pytest.raises(
        ImportError, match=r"with CUDA 13.0, but the running torch .* has CUDA 12.8"
    ):
        _load.check_torch(_build.TORCH, "12.8")
    with pytest.raises(ImportError, match=r"has CUDA None; rebuild paramixer for it: pip install"):
        _load.check_torch(_build.TORCH, None)


def test_refusal_comes_before_anything_is_loaded():
    code = (
        "import torch; torch.__version__ = '9.9.9'\n"
        "try:\n    import paramixer\n"
        "except ImportError as error:\n    print(error)\n"
        "print('loaded' if 'libparamixer' in open('/proc/self/maps').read() else 'not loaded')"
    )
    process = run("-c", code)
    assert "built for torch" in process.stdout and "9.9.9" in process.stdout, process.stderr
    assert process.stdout.strip().endswith("not loaded")


def test_info():
    process = run("-m", "paramixer.info")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    for fact in ("paramixer", "torch", "cpu instruction set", "threads", "cuda kernels"):
        assert f"\n{fact} " in f"\n{process.stdout}"
    assert _load.cpu_instruction_set() in process.stdout


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), "80-real;90-real;100-real;120", True),
        ((8, 9), "80-real;90-real;100-real;120", True),
        ((7, 5), "80-real;90-real;100-real;120", False),
        ((11, 0), "80-real;90-real;100-real;120", False),
        ((12, 1), "80-real;90-real;100-real;120", True),
        ((13, 0), "80-real;90-real;100-real;120", True),
        ((13, 0), "80-real;90-real", False),
        ((9, 0), "80-virtual", True),
        ((9, 0), "", False),
    ],
)
def test_which_gpus_are_usable(capability, architectures, runs):
    assert info.runs_on(capability, architectures) is runs


def test_paths_for_cpp():
    assert (
        Path(paramixer.utils.cmake_prefix_path) / "Paramixer" / "ParamixerConfig.cmake"
    ).exists()
    assert (Path(paramixer.utils.include_path) / "paramixer" / "paramixer.h").exists()
    assert Path(paramixer.utils.library_path).exists()


def test_installed_cmake_package_names_no_build_folder():
    for file in (Path(paramixer.utils.cmake_prefix_path) / "Paramixer").glob("*.cmake"):
        assert str(ROOT / "build") not in file.read_text(), file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built as a user would, in the build tree that is there."""
    folder = tmp_path_factory.mktemp("wheel")
    cuda = "ON" if paramixer.has_cuda() else "OFF"  # as this one was built: nothing is compiled
    command = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    process = run(*command, PARAMIXER_CUDA=cuda)
    assert process.returncode == 0, process.stdout + process.stderr
    (file,) = folder.glob("paramixer-*.whl")
    return file


def test_wheel_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(n).decode() for n in names if n.endswith("METADATA"))
    for name in (
        "paramixer/lib/libparamixer.so",
        "paramixer/include/paramixer/paramixer.h",
        "paramixer/include/paramixer/version.h",
        "paramixer/share/cmake/Paramixer/ParamixerConfig.cmake",
        "paramixer/py.typed",
        "paramixer/nn/__init__.py",
        "paramixer/_build.py",
    ):
        assert name in names
    assert any(name.startswith("paramixer/_C.") for name in names)
    modules = {n for n in names if n.endswith(".py")}
    sources = {str(p.relative_to(ROOT / "python")) for p in (ROOT / "python").rglob("*.py")}
    assert modules == sources | {
        "paramixer/_build.py"
    }  # which an installed build has not put there
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={minor}.*" in metadata
    assert "Requires-Dist: numpy" in metadata
    assert "Provides-Extra: train" in metadata


def test_wheel_works_where_it_is_installed(wheel, tmp_path):
    """Beside this environment's torch, through the library's own search paths."""
    process = run("-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    assert process.returncode == 0, process.stderr
    code = (
        "import torch, paramixer\n"
        "print(paramixer.__file__)\n"
        "w = torch.ones(4, 2, requires_grad=True)\n"
        "paramixer.mix(w, torch.ones(4, 3), [0, 1]).sum().backward()\n"
        "print(w.grad.sum().item())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    location, total = process.stdout.split()
    assert Path(location).is_relative_to(tmp_path)
    assert float(total) == 24.0


def test_metadata_and_sdist_need_no_torch(tmp_path):
    """Only compiling does; then one line says what to run."""
    without_torch = tmp_path / "without_torch"
    without_torch.mkdir()
    (without_torch / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    )
    environment = {"PYTHONPATH": str(without_torch)}
    script = (
        "import os, sys\n"
        "from setuptools import build_meta\n"
        "_, root, folder = sys.argv\n"
        "os.chdir(root)\n"
        "build_meta.build_sdist(folder)\n"
        "build_meta.prepare_metadata_for_build_wheel(folder)"
    )
    process = run("-c", script, ROOT, tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / f"paramixer-{paramixer.__version__}.tar.gz").exists()
    process = run(ROOT / "setup.py", "-q", "build_ext", "--build-lib", tmp_path, **environment)
    assert process.returncode != 0
    assert (
        "torch must be installed before paramixer is built; run: pip install torch"
        in process.stderr
    )
