import pytest
from mini_support import tar_of, write_deb, write_zip
from paramixer.tasks.packages import Package, of_archive, of_debian, of_extra, read_tar

FILES = {"usr/share/a.txt": b"alpha", "usr/share/b.bin": bytes(range(256)) * 9}
DEBIAN = of_debian("no-such-package")
PYTHON = of_archive("NoSuch", "1.0", "no_such_module", "no_such-*.whl")


@pytest.mark.parametrize(
    ("package", "write", "name"),
    [(DEBIAN, write_deb, "no-such-package_2_all.deb"), (PYTHON, write_zip, "no_such-1.0.whl")],
)
def test_files_of_an_archive(tmp_path, package, write, name):
    write(tmp_path / name, FILES)
    found = package.find("task", list(reversed(FILES)), tmp_path)
    assert found.sources == [tmp_path / name]
    assert list(found.read().items()) == list(reversed(FILES.items()))

    with pytest.raises(ValueError, match=rf"{name} must be an archive with a, b .*fetch it again"):
        package.find("task", ["a", "b"], tmp_path).read()
    (tmp_path / name).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=f"{name} must be an archive"):
        package.find("task", ["a"], tmp_path).read()


def test_files_of_an_installed_package(tmp_path):
    found = of_extra("pytest", "pytest").find("task", ["pytest/__init__.py"], tmp_path)
    assert found.sources[0].name == "__init__.py"
    assert b"pytest" in found.read()["pytest/__init__.py"]


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (DEBIAN, "apt install no-such-package, or: .*apt-get download no-such-package"),
        (PYTHON, r"pip download --no-deps --dest \S+ NoSuch==1.0"),
        (of_extra("no-such", "no_such"), r"pip install paramixer\[train\]"),
        (Package("x", ("y",), "pytest"), "y"),  # installed, but without the file
    ],
)
def test_an_absent_package(tmp_path, package, message):
    with pytest.raises(ImportError, match=f"task needs the package {package.name}, .*{message}"):
        package.find("task", ["a"], tmp_path)


def test_missing_files_of_a_tar_archive_are_named():
    with pytest.raises(KeyError, match="b, c"):
        read_tar(tar_of({"./a": b"1"}, "gz"), ["a", "b", "c"])
