import re
import subprocess
import sys
import warnings

import numpy as np
import paramixer
import pytest
import torch
from paramixer import SparseFactorization, factorize, links

pytestmark = pytest.mark.filterwarnings("ignore:factorize. stopped")


def dense_factor(weights, offsets):
    """(N, N), entry by entry."""
    length = len(weights)
    matrix = torch.zeros(length, length, dtype=weights.dtype)
    for row in range(length):
        for weight, offset in zip(weights[row], offsets, strict=True):
            matrix[row, (row + offset) % length] += weight
    return matrix


def dense_product(factorization):
    product = torch.eye(len(factorization.weights), dtype=factorization.weights.dtype)
    for m, offsets in enumerate(factorization.offsets):
        product = dense_factor(factorization.weights[:, m], offsets) @ product
    return product


def random_factorization(length=11, offsets=((0, 1, 2), (0, -3, 8), (0, 4, 15))):
    weights = torch.randn(length, len(offsets), len(offsets[0]), dtype=torch.float64)
    return SparseFactorization(weights, [list(factor) for factor in offsets], 0.0, 0, True)


@pytest.mark.parametrize("protocol", ["chord", "cdil", [[0, 1, 3], [0, 2, -1], [0, 5, 4]]])
def test_recovers_a_product_of_such_factors(protocol):
    length = 12
    by_name = isinstance(protocol, str)  # few factors: a long product is recovered slowly
    offsets = getattr(links, protocol)(length, 2) if by_name else protocol
    weights = 0.4 + torch.rand(length, len(offsets), len(offsets[0]), dtype=torch.float64)
    matrix = paramixer.mix_chain(weights, torch.eye(length, dtype=torch.float64), offsets)
    found = factorize(matrix, 2 if by_name else None, protocol)
    assert found.converged
    assert found.error <= 1e-6 * matrix.norm()
    torch.testing.assert_close(found.to_dense(), matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_result(optimizer, device):
    matrix = torch.randn(20, 20, dtype=torch.float64, device=device)
    found = factorize(matrix, factors=3, links=4, optimizer=optimizer, iterations=40, columns=7)
    assert found.offsets == links.chord(20, 3, 4)
    assert found.weights.shape == (20, 3, 4)
    assert found.weights.dtype == torch.float64
    assert found.weights.device.type == device.type
    assert not found.weights.requires_grad
    assert found.numbers == 240
    assert found.iterations == 40
    assert found.error == pytest.approx((matrix - found.to_dense()).norm().item(), rel=1e-12)
    assert found.error < matrix.norm()


def test_products_are_those_of_the_dense_matrix():
    found = random_factorization()
    dense = dense_product(found)
    torch.testing.assert_close(found.to_dense(), dense)
    for shape in [(11,), (11, 1), (11, 5), (2, 3, 11, 4), (11, 0)]:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(found.matmul(x), torch.matmul(dense, x))
        torch.testing.assert_close(found @ x, torch.matmul(dense, x))


def test_product_has_gradients():
    found = random_factorization()
    found.weights.requires_grad_()
    x = torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    (found @ x).sum().backward()
    torch.testing.assert_close(x.grad, dense_product(found).sum(0)[:, None].expand(11, 2))
    assert found.weights.grad.shape == found.weights.shape


def test_products_follow_the_device_of_x(device):
    found = random_factorization()
    x = torch.randn(11, 3, dtype=torch.float64)
    torch.testing.assert_close((found @ x.to(device)).cpu(), found @ x)
    assert (found.to(torch.float32) @ x.float()).dtype == torch.float32


@pytest.mark.parametrize("offsets", [((0, 1), (0, -3)), ((0, 11, 22),), ((-(2**63), 2**63 - 1),)])
def test_transpose(offsets):
    found = random_factorization(offsets=offsets)
    transposed = found.transpose()
    assert transposed.numbers == found.numbers
    dense = dense_product(found)
    if min(map(min, offsets)) > -(2**63):  # its negative does not fit the operators
        torch.testing.assert_close(transposed.to_dense(), dense.mT)
    torch.testing.assert_close(dense_product(transposed), dense.mT)
    back = transposed.transpose()
    assert back.offsets == found.offsets
    assert torch.equal(back.weights, found.weights)


def test_save_and_load(tmp_path):
    found = factorize(torch.randn(9, 9), iterations=20)
    path = tmp_path / "matrix.safetensors"
    found.transpose().save(path)
    loaded = SparseFactorization.load(path)
    assert torch.equal(loaded.weights, found.transpose().weights)
    for name in ("offsets", "error", "iterations", "converged"):
        assert getattr(loaded, name) == getattr(found.transpose(), name)


def test_load_refuses_other_files(tmp_path):
    from safetensors.torch import save_file

    foreign, text = tmp_path / "foreign.safetensors", tmp_path / "text"
    save_file({"weights": torch.zeros(2, 1, 1)}, foreign)
    text.write_text("no tensors in here")
    for path in (foreign, text):
        with pytest.raises(ValueError, match=re.escape(f"has written (got {str(path)!r})")):
            SparseFactorization.load(path)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_seed_decides(optimizer):
    matrix = torch.randn(16, 16)

    def weights(seed, **options):
        options |= {"optimizer": optimizer, "iterations": 30, "columns": 8}
        return factorize(matrix, seed=seed, **options).weights

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_restarts_keep_the_best():
    matrix = torch.randn(16, 16, dtype=torch.float64)
    single = [factorize(matrix, seed=seed, iterations=30) for seed in (5, 6, 7)]
    best = factorize(matrix, seed=5, restarts=3, iterations=30)
    assert best.error == min(found.error for found in single)
    assert torch.equal(best.weights, min(single, key=lambda found: found.error).weights)


def test_batches_of_columns_change_nothing_but_rounding():
    matrix = torch.randn(16, 16, dtype=torch.float64)
    whole, parts = (factorize(matrix, iterations=5, columns=columns) for columns in (16, 5))
    torch.testing.assert_close(whole.weights, parts.weights, rtol=1e-9, atol=1e-12)


def test_global_generators_are_left_alone():
    state = torch.get_rng_state()
    factorize(torch.ones(4, 4), iterations=2)
    factorize(torch.ones(4, 4), iterations=2, optimizer="adam")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [
        (np.eye(4, dtype=np.float32)[::-1], torch.float32),
        (np.eye(4), torch.float64),
        (np.eye(4, dtype=np.int8), torch.float64),
        (torch.eye(4, dtype=torch.bool), torch.float64),
        (torch.eye(4, dtype=torch.bfloat16), torch.float32),
        (torch.eye(4, requires_grad=True), torch.float32),
        (torch.eye(4).mT, torch.float32),
    ],
)
def test_dtypes(matrix, dtype):
    found = factorize(matrix, iterations=300)
    assert found.weights.dtype == dtype
    expected = (
        torch.as_tensor(np.ascontiguousarray(matrix)) if isinstance(matrix, np.ndarray) else matrix
    )
    torch.testing.assert_close(found.to_dense(), expected.detach().to(dtype), rtol=0, atol=1e-2)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("fill", [0.0, -3.0])
def test_smallest_matrices(length, fill):
    matrix = torch.full((length, length), fill, dtype=torch.float64)
    found = factorize(matrix)
    assert found.error <= 1e-6


def test_warns_when_iterations_ran_out():
    matrix = torch.randn(16, 16)
    with pytest.warns(UserWarning, match=r"factorize: stopped after 7 iterations before"):
        found = factorize(matrix, iterations=7)
    assert not found.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert factorize(torch.eye(8), factors=1, links=1).converged
        factorize(matrix, iterations=7, optimizer="adam")


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="factorize: learning_rate must be small enough"):
        factorize(torch.randn(8, 8), optimizer="adam", iterations=60, learning_rate=1e30)


def test_progress_bar(capsys):
    factorize(torch.randn(8, 8), iterations=60, progress=True)
    assert "error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(matrix=[[1.0]]), TypeError, "matrix must be a tensor or an array (got list)"),
        (dict(matrix=torch.eye(2) * 1j), TypeError, "matrix must be real (got torch.complex64)"),
        (dict(matrix=np.eye(2) * 1j), TypeError, "matrix must be real (got dtype complex128)"),
        (dict(matrix=np.array([["a"]])), TypeError, "matrix must be real (got dtype <U1)"),
        (
            dict(matrix=torch.ones(2, 3)),
            ValueError,
            "matrix must be (N, N) with N >= 1 (got shape [2, 3])",
        ),
        (
            dict(matrix=torch.ones(0, 0)),
            ValueError,
            "matrix must be (N, N) with N >= 1 (got shape [0, 0])",
        ),
        (
            dict(matrix=torch.ones(2, 2, 2)),
            ValueError,
            "matrix must be (N, N) with N >= 1 (got shape [2, 2, 2])",
        ),
        (
            dict(matrix=torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])),
            ValueError,
            "matrix must be finite (got nan at [1, 0])",
        ),
        (
            dict(matrix=np.array([[0.0, -np.inf], [0.0, 0.0]])),
            ValueError,
            "matrix must be finite (got -inf at [0, 1])",
        ),
        (
            dict(protocol="ring"),
            ValueError,
            "protocol must be one of ('chord', 'cdil') (got 'ring')",
        ),
        (
            dict(protocol=[[0, 1], [0]]),
            ValueError,
            "protocol must hold one or more lists of the same number of offsets, at least 1 and at "
            "most 64 (got lists of [2, 1])",
        ),
        (
            dict(protocol=[]),
            ValueError,
            "protocol must hold one or more lists of the same number of offsets, at least 1 and at "
            "most 64 (got lists of [])",
        ),
        (
            dict(protocol=[[0.5]]),
            TypeError,
            "protocol must be one list of integers per factor (got [[0.5]])",
        ),
        (
            dict(protocol=[[0]], factors=1),
            ValueError,
            "factors must be None with lists of offsets (got 1)",
        ),
        (
            dict(protocol=[[0]], links=1),
            ValueError,
            "links must be None with lists of offsets (got 1)",
        ),
        (dict(optimizer="sgd"), ValueError, "optimizer must be one of ('lbfgs', 'adam')"),
        (dict(restarts=0), ValueError, "restarts must be at least 1 (got 0)"),
        (dict(seed=0.5), TypeError, "seed must be an integer (got 0.5)"),
        (dict(iterations=0), ValueError, "iterations must be at least 1 (got 0)"),
        (dict(columns=0), ValueError, "columns must be at least 1 (got 0)"),
        (dict(tolerance=-1.0), ValueError, "tolerance must be at least 0 and below 1 (got -1.0)"),
        (dict(learning_rate=0.0), ValueError, "learning_rate must be positive (got 0.0)"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"matrix": torch.eye(4)} | arguments
    with pytest.raises(error, match=re.escape(f"factorize: {message}")):
        factorize(**arguments)


def test_errors_of_the_protocols_come_through():
    with pytest.raises(ValueError, match=r"chord: factors must be at least 1 \(got 0\)"):
        factorize(torch.eye(4), factors=0)
    with pytest.raises(ValueError, match="cdil: links must be odd"):
        factorize(torch.eye(4), protocol="cdil", links=2)


def test_errors_of_a_factorization():
    with pytest.raises(
        ValueError,
        match=re.escape(
            "SparseFactorization: weights must be (N, M, K) for M lists of K offsets "
            "(got shape [3, 1, 2] for lists of [1])"
        ),
    ):
        SparseFactorization(torch.zeros(3, 1, 2), [[0]], 0.0, 0, True)
    found = random_factorization()
    with pytest.raises(ValueError, match=re.escape("x must be (N,) or (*, N, D) (got shape [])")):
        found @ torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="mix_chain"):
        found @ torch.zeros(10, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="mix_chain"):
        found @ torch.zeros(11, 2)


@pytest.mark.parametrize(
    ("package", "call"),
    [("safetensors", "found.save('x')"), ("safetensors", "found.load('x')")],
)
def test_missing_packages_are_named(package, call):
    code = (
        f"import sys; sys.modules[{package!r}] = None; import torch, paramixer\n"
        f"found = paramixer.factorize(torch.eye(2))\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"needs the package {package}, which is not installed" in done.stderr
    assert "Run: pip install paramixer[factorize]" in done.stderr


@pytest.mark.parametrize("size", [6, 8, 16])
def test_identity_in_float32(size):
    """Long valleys and a start far from them: rounding must not end the search early."""
    matrix = torch.eye(size)
    for seed in range(6):
        found = factorize(matrix, seed=seed, iterations=600)
        assert found.error <= 1e-4 * matrix.norm()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_entries_whose_squares_leave_the_range_of_float32(scale):
    matrix = torch.rand(5, 5)
    small = factorize(matrix, iterations=30)
    found = factorize(matrix * scale, iterations=30)
    assert found.error / scale == pytest.approx(small.error, rel=0.1, abs=1e-3)
