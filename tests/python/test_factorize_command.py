import subprocess
import sys
from pathlib import Path

import numpy as np
import paramixer
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def factorizing(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from factorizing import matrices, opponents

    return matrices, opponents


def command(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / "factorize.py", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_truncated_svd_spends_what_it_is_given(factorizing):
    _, opponents = factorizing
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    left, values, right = np.linalg.svd(matrix)
    rank2 = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(opponents.truncated_svd(matrix, 24), rank2)
    # Half a term lies between two ranks.
    error = [np.linalg.norm(matrix - opponents.truncated_svd(matrix, n)) for n in (24, 30, 36)]
    assert error[0] > error[1] > error[2]
    np.testing.assert_allclose(opponents.truncated_svd(matrix, 500), matrix, atol=1e-14)


def test_monarch_recovers_monarch_matrices(factorizing):
    _, opponents = factorizing
    generator = np.random.default_rng(0)
    b, m = 3, 4
    inner = generator.normal(size=(m, b, b))  # R, block k: i -> j
    outer = generator.normal(size=(b, m, m))  # L, block j: k -> l
    matrix = np.einsum("jlk,kji->ljki", outer, inner).reshape(12, 12)
    numbers = m * b * b + b * m * m
    np.testing.assert_allclose(opponents.monarch(matrix, numbers), matrix, atol=1e-12)
    assert not np.allclose(opponents.monarch(matrix, numbers - 14), matrix)
    assert opponents.monarch(np.eye(7), 14) is None


def test_files(factorizing, tmp_path):
    matrices, _ = factorizing
    from PIL import Image
    from scipy.io import mmwrite
    from scipy.sparse import coo_array

    matrix = np.random.default_rng(0).normal(size=(4, 4))
    np.save(tmp_path / "a.npy", matrix)
    np.testing.assert_array_equal(matrices.read(tmp_path / "a.npy"), matrix)
    mmwrite(tmp_path / "a.mtx", coo_array(matrix))
    np.testing.assert_allclose(matrices.read(tmp_path / "a.mtx"), matrix)
    (tmp_path / "a.csv").write_text("b,a\nb,c,2.5\n")
    expected = [[0, 1, 0], [1, 0, 2.5], [0, 2.5, 0]]
    np.testing.assert_array_equal(matrices.read(tmp_path / "a.csv"), expected)
    Image.fromarray(np.full((4, 7), 100, dtype=np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_allclose(matrices.read(tmp_path / "a.png"), np.full((4, 4), 99.99))
    with pytest.raises(ValueError, match=r"factorize: file must be an image.*got 'a.txt'"):
        matrices.read(tmp_path / "a.txt")


def test_command(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(12, 12))
    np.save(tmp_path / "a.npy", matrix)
    options = ("--iterations", 60, "--seeds", 0, 1, "--compare", "--out", tmp_path)
    done = command(tmp_path / "a.npy", *options)
    assert done.returncode == 0, done.stderr
    for row in ("seed 0", "seed 1", "median", "truncated SVD", "Monarch"):
        assert row in done.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
    loaded = paramixer.SparseFactorization.load(tmp_path / "a.safetensors")
    assert loaded.error == pytest.approx(np.linalg.norm(matrix - loaded.to_dense().numpy()))


def test_command_names_what_is_wrong(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    done = command(tmp_path / "a.npy")
    assert done.returncode == 1
    assert "factorize: matrix must be (N, N) with N >= 1 (got shape [2, 3])" in done.stderr
    assert "Traceback" not in done.stderr
