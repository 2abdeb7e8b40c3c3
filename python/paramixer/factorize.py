"""Sparse factorization of a given matrix: A ~ S_M .. S_1 with links at fixed offsets.

This is the non-parametric half of Khalitov, Yu, Cheng and Yang, "Sparse Factorization of Large
Square Matrices" (arXiv 2109.08184): the weights of the links are themselves what is optimized. The
products and their gradients are those of :func:`paramixer.mix_chain`, applied to columns of the
identity in batches, so that no factor is ever a dense matrix.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramixer import links as protocols
from paramixer._checks import check_choice, check_integer, check_offsets, check_size
from paramixer._extras import needs_extra
from paramixer._lbfgs import History, Point, line_search
from paramixer.ops import mix_chain

PROTOCOLS = ("chord", "cdil")
OPTIMIZERS = ("lbfgs", "adam")
COLUMNS = {"lbfgs": 1024, "adam": 256}  # a batch of them; the states of the chain are (N, columns)
NOISE = 1e-2  # of the start, relative: it tells equal factors apart
# Pairs that L-BFGS remembers: many where they are short, as each costs a pass over its numbers.
HISTORY_NUMBERS, LEAST_HISTORY, MOST_HISTORY = 1 << 20, 20, 100
CHECK_EVERY = 50  # iterations between two looks at convergence

Report = Callable[[int, float], None]  # takes iterations done in this restart and the error


@dataclass(frozen=True, eq=False)
class SparseFactorization:
    """A square matrix as a product of sparse factors, S_M .. S_1.

    ``S_m[i, (i + o_mk) mod N] = W[i, m, k]``; links that coincide modulo N add up.

    Attributes:
        weights: W, (N, M, K), the weights of the m-th factor *applied* at index m (the W1 of
            arXiv 2109.08184 is the last one here).
        offsets: M lists of K offsets.
        error: Frobenius norm of A - S_M .. S_1.
        iterations: of the optimizer, in the restart that was kept.
        converged: whether the optimizer had stopped making progress.
    """

    weights: Tensor
    offsets: list[list[int]]
    error: float
    iterations: int
    converged: bool

    def __post_init__(self) -> None:
        counts = [len(factor) for factor in self.offsets]
        if self.weights.dim() != 3 or counts != [self.weights.shape[2]] * self.weights.shape[1]:
            raise ValueError(
                "SparseFactorization: weights must be (N, M, K) for M lists of K offsets "
                f"(got shape {list(self.weights.shape)} for lists of {counts})"
            )

    @property
    def numbers(self) -> int:
        """How many values are stored: N M K."""
        return self.weights.numel()

    def matmul(self, x: Tensor) -> Tensor:
        """Multiplies by the factors, one after the other: ``S_M .. S_1 x``, differentiable.

        Args:
            x: (N,) or (*, N, D), of the weights' dtype, on any device; the weights follow it.

        Returns:
            (N,) or (*, N, D).

        Raises:
            ValueError: x has no dimension, or does not have N rows.
            TypeError: x has another dtype than the weights.
        """
        if x.dim() == 0:
            raise ValueError("SparseFactorization: x must be (N,) or (*, N, D) (got shape [])")
        columns = x.unsqueeze(-1) if x.dim() == 1 else x
        product = mix_chain(self.weights.to(x.device), columns, self.offsets)
        return product.squeeze(-1) if x.dim() == 1 else product

    __matmul__ = matmul

    def transpose(self) -> SparseFactorization:
        """The transpose, a factorization of A^T with as many numbers, exactly.

        Row j of S_m^T holds W[(j - o_mk) mod N, m, k] at (j - o_mk) mod N, and the factors take
        turns in the opposite order.
        """
        length, factors, count = self.weights.shape
        device = self.weights.device
        # Reduced in Python: offsets may exceed what fits into a tensor of int64 after an addition.
        shifts = torch.tensor([[o % length for o in factor] for factor in self.offsets]).to(device)
        rows = (torch.arange(length, device=device)[:, None, None] - shifts) % length
        m = torch.arange(factors, device=device)[:, None]
        weights = self.weights[rows, m, torch.arange(count, device=device)].flip(1)
        offsets = [[-offset for offset in factor] for factor in reversed(self.offsets)]
        return SparseFactorization(weights, offsets, self.error, self.iterations, self.converged)

    def to(self, *args: Any, **kwargs: Any) -> SparseFactorization:
        """The same with ``weights.to(..)``: another device, another dtype."""
        weights = self.weights.to(*args, **kwargs)
        return SparseFactorization(
            weights, self.offsets, self.error, self.iterations, self.converged
        )

    def to_dense(self) -> Tensor:
        """The product S_M .. S_1, (N, N)."""
        length = self.weights.shape[0]
        dense = self.weights.new_empty(length, length)
        with torch.no_grad():
            for columns in torch.arange(length).split(COLUMNS["lbfgs"]):
                dense[:, columns] = mix_chain(
                    self.weights, _identity(self.weights, columns), self.offsets
                )
        return dense

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to a safetensors file.

        Raises:
            ImportError: safetensors is not installed.
        """
        with needs_extra("SparseFactorization.save", "factorize"):
            from safetensors.torch import save_file
        facts = {
            "offsets": self.offsets,
            "error": self.error,
            "iterations": self.iterations,
            "converged": self.converged,
        }
        weights = self.weights.detach().cpu().contiguous()
        save_file({"weights": weights}, path, {"paramixer.factorize": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparseFactorization:
        """Reads what :meth:`save` has written, to the CPU.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the file was not written by :meth:`save`.
        """
        with needs_extra("SparseFactorization.load", "factorize"):
            from safetensors import SafetensorError, safe_open
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["paramixer.factorize"])
                return cls(file.get_tensor("weights"), **facts)
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                "SparseFactorization.load: path must be a file that save() has written "
                f"(got {os.fspath(path)!r})"
            ) from error


def factorize(
    matrix: Tensor | np.ndarray,
    factors: int | None = None,
    protocol: str | Sequence[Sequence[int]] = "chord",
    links: int | None = None,
    optimizer: str = "lbfgs",
    restarts: int = 1,
    seed: int = 0,
    *,
    iterations: int = 3000,
    tolerance: float = 1e-5,
    learning_rate: float = 1e-2,
    columns: int | None = None,
    progress: bool = False,
) -> SparseFactorization:
    """Approximates a square matrix by a product of sparse factors.

    Minimizes ``J = 1/2 || A - S_M .. S_1 ||_F^2`` over the weights of the links (arXiv 2109.08184).
    Every factor starts as the average over its links, (1 + u / 100) / K with u uniform in [0, 1),
    scaled so that the product has about the spectral norm of A.

    "lbfgs" is L-BFGS with a strong Wolfe line search over all columns of A: the choice up to some
    thousand rows. "adam" takes `columns` random columns a step and lowers its learning rate to
    zero along a cosine: many cheap steps for large N. It follows that schedule to its end, so it
    never counts as converged and gives no warning.

    Args:
        matrix: A, (N, N), real. float32 and float64 are computed as they are, 16-bit floats in
            float32, integers in float64.
        factors: number of factors M; default max(1, ceil(log2 N)).
        protocol: "chord", "cdil", or M lists of K offsets.
        links: links per row K; default that of the protocol, see :mod:`paramixer.links`.
        optimizer: "lbfgs" or "adam".
        restarts: how many starts, with the seeds seed, seed + 1, ..; the lowest error is kept.
        seed: of the start and of the columns drawn. The same seed gives the same result.
        iterations: the most iterations of a restart.
        tolerance: "lbfgs" has converged when 50 iterations lowered the error by less than this
            part of it.
        learning_rate: of "adam", at its start.
        columns: how many columns go through the chain at once; memory is proportional. "adam"
            draws that many a step. Default 1024, and 256 for "adam".
        progress: shows a progress bar (needs rich).

    Returns:
        The factorization, on the matrix's device.

    Raises:
        ValueError: the matrix is empty, not square or not finite; an argument is out of range.
        TypeError: the matrix is neither a tensor nor an array, or not real; an argument has the
            wrong type.
        FloatingPointError: the optimizer left the finite numbers (learning rate too high).
        ImportError: `progress` without rich.

    Warns:
        UserWarning: "lbfgs" stopped for lack of iterations.
    """
    target = _check_matrix(matrix)
    length = len(target)
    offsets = _check_protocol(length, factors, protocol, links)
    check_choice("factorize", "optimizer", optimizer, OPTIMIZERS)
    restarts = check_size("factorize", "restarts", restarts)
    seed = check_integer("factorize", "seed", seed)
    iterations = check_size("factorize", "iterations", iterations)
    _check_range("tolerance", tolerance, 0 <= tolerance < 1, "at least 0 and below 1")
    _check_range("learning_rate", learning_rate, 0 < learning_rate < math.inf, "positive")
    columns = COLUMNS[optimizer] if columns is None else check_size("factorize", "columns", columns)

    # Starts far from the norm of A overflow in the first line searches in float32.
    scale = _spectral_norm(target) or 1.0
    objective = _Objective(target / scale, offsets, min(columns, length))
    best: SparseFactorization | None = None
    with _progress_bar(progress, restarts * iterations) as advance:
        for restart in range(restarts):
            generator = torch.Generator().manual_seed(seed + restart)
            weights = _start(target, offsets, generator)

            def report(done: int, error: float, before: int = restart * iterations) -> None:
                advance(before + done, scale * error)

            if optimizer == "lbfgs":
                done, converged = _minimize(objective, weights, iterations, tolerance, report)
            else:
                _descend(objective, weights, iterations, learning_rate, generator, report)
                done, converged = iterations, False
            error = scale * objective.error(weights)
            if not math.isfinite(error):
                raise FloatingPointError(
                    f"factorize: learning_rate must be small enough to converge (got "
                    f"{learning_rate} and an error of {error})"
                )
            if best is None or error < best.error:
                weights *= scale ** (1 / len(offsets))
                best = SparseFactorization(weights, offsets, error, done, converged)
    assert best is not None
    if optimizer == "lbfgs" and not best.converged:
        warnings.warn(
            f"factorize: stopped after {iterations} iterations before it converged "
            f"(error {best.error:.6g}); more iterations lower the error",
            stacklevel=2,
        )
    return best


class _Objective:
    """J over all or some columns of A, with its gradient."""

    def __init__(self, target: Tensor, offsets: list[list[int]], columns: int) -> None:
        self.target = target
        self.offsets = [offset for factor in offsets for offset in factor]
        self.columns = columns
        length = len(target)
        # Made once where they all fit into one batch: L-BFGS asks thousands of times.
        self.identity = torch.eye(length).to(target) if columns == length else None

    def _residual(self, weights: Tensor, columns: Tensor) -> Tensor:
        """(N, C), the columns of S_M .. S_1 - A."""
        if self.identity is not None and len(columns) == len(self.target):
            return mix_chain(weights, self.identity, self.offsets) - self.target
        value = _identity(weights, columns)
        return mix_chain(weights, value, self.offsets) - self.target[:, columns]

    def gradient(self, weights: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The part of J that these columns make, and its gradient (N, M, K)."""
        weights = weights.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._residual(weights, columns).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, weights)
        return loss.detach(), gradient

    def full_gradient(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """J and its gradient, batch by batch in a fixed order."""
        parts = (self.gradient(weights, batch) for batch in self._batches())
        loss, gradient = next(parts)
        for part, slope in parts:
            loss += part
            gradient += slope
        return loss, gradient

    @torch.no_grad()
    def error(self, weights: Tensor) -> float:
        """|| A - S_M .. S_1 ||_F."""
        return math.sqrt(
            sum(
                self._residual(weights, batch).square().sum(dtype=torch.float64).item()
                for batch in self._batches()
            )
        )

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.target)).split(self.columns)


def _minimize(
    objective: _Objective, weights: Tensor, iterations: int, tolerance: float, report: Report
) -> tuple[int, bool]:
    """L-BFGS in place; returns the iterations done and whether they converged."""
    pairs = min(max(HISTORY_NUMBERS // weights.numel(), LEAST_HISTORY), MOST_HISTORY)
    history = History(weights, pairs)
    floor = torch.finfo(weights.dtype).eps * objective.target.norm().item()
    before = math.inf
    here = Point(weights.clone(), *objective.full_gradient(weights))
    for done in range(1, iterations + 1):
        found = line_search(objective.full_gradient, here, history.direction(here.gradient))
        if found is None and history.count > 0:  # rounding may have spoiled the direction
            history.clear()
            found = line_search(objective.full_gradient, here, history.direction(here.gradient))
        if found is None:
            report(done - 1, objective.error(weights))
            return done - 1, True
        history.add(found.place - here.place, found.gradient - here.gradient)
        here = found
        weights.copy_(here.place)
        if done % CHECK_EVERY == 0 or done == iterations:
            error = objective.error(weights)
            report(done, error)
            stalled = done % CHECK_EVERY == 0 and before - error <= tolerance * error
            if error <= floor or stalled:
                return done, True
            before = error
    return iterations, False


def _descend(
    objective: _Objective,
    weights: Tensor,
    iterations: int,
    learning_rate: float,
    generator: torch.Generator,
    report: Report,
) -> None:
    """Adam in place, on random columns."""
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    length, columns = len(weights), objective.columns
    for step in range(1, iterations + 1):
        drawn = torch.randperm(length, generator=generator)[:columns]
        loss, weights.grad = objective.gradient(weights, drawn)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0 or step == iterations:
            report(step, math.sqrt(2 * loss.item() * length / columns))


def _start(target: Tensor, offsets: list[list[int]], generator: torch.Generator) -> Tensor:
    """(N, M, K), rows that average over their links; drawn on the CPU, so equal on all devices."""
    shape = (len(target), len(offsets), len(offsets[0]))
    noise = torch.rand(shape, generator=generator, dtype=torch.float64)
    return ((1 + NOISE * noise) / shape[-1]).to(target)


def _identity(like: Tensor, columns: Tensor) -> Tensor:
    """(N, C), these columns of the identity."""
    identity = like.new_zeros(len(like), len(columns))
    identity[columns, torch.arange(len(columns))] = 1
    return identity


def _spectral_norm(matrix: Tensor) -> float:
    """About the largest singular value; only the start depends on it."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.rand(len(matrix), generator=generator, dtype=torch.float64).to(matrix)
    norm = 0.0
    for _ in range(10):
        vector = matrix @ _unit(vector)
        norm = vector.double().norm().item()  # squares leave the range of float32
        if norm == 0:
            break
        vector = matrix.mT @ _unit(vector)
        if not vector.any():
            break
    return norm


def _unit(vector: Tensor) -> Tensor:
    return (vector / vector.double().norm()).to(vector.dtype)


def _check_matrix(matrix: Any) -> Tensor:
    """The matrix as a tensor of the dtype to compute in."""
    if isinstance(matrix, np.ndarray):
        if matrix.dtype.kind not in "fiub":
            raise TypeError(f"factorize: matrix must be real (got dtype {matrix.dtype})")
        matrix = torch.from_numpy(np.ascontiguousarray(matrix))
    if not isinstance(matrix, Tensor):
        raise TypeError(
            f"factorize: matrix must be a tensor or an array (got {type(matrix).__name__})"
        )
    if matrix.is_complex():
        raise TypeError(f"factorize: matrix must be real (got {matrix.dtype})")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ValueError(
            f"factorize: matrix must be (N, N) with N >= 1 (got shape {list(matrix.shape)})"
        )
    matrix = matrix.detach()
    if not matrix.is_floating_point():
        return matrix.to(torch.float64)
    wrong = (~matrix.isfinite()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"factorize: matrix must be finite (got {matrix[row, column].item()} "
            f"at [{row}, {column}])"
        )
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _check_protocol(
    length: int, factors: int | None, protocol: Any, links: int | None
) -> list[list[int]]:
    """The offsets of every factor."""
    if isinstance(protocol, str):
        check_choice("factorize", "protocol", protocol, PROTOCOLS)
        if protocol == "chord":
            return protocols.chord(length, factors, links)
        if links is None:
            return protocols.cdil(length, factors)
        return protocols.cdil(length, factors, links)
    for name, value in (("factors", factors), ("links", links)):
        if value is not None:
            raise ValueError(f"factorize: {name} must be None with lists of offsets (got {value})")
    offsets = check_offsets("factorize", "protocol", protocol)
    counts = [len(factor) for factor in offsets]
    if not counts or len(set(counts)) > 1 or not 1 <= counts[0] <= protocols.MAX_LINKS:
        raise ValueError(
            "factorize: protocol must hold one or more lists of the same number of offsets, at "
            f"least 1 and at most {protocols.MAX_LINKS} (got lists of {counts})"
        )
    return offsets


def _check_range(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"factorize: {name} must be {rule} (got {value})")


@contextmanager
def _progress_bar(shown: bool, total: int) -> Iterator[Report]:
    """A function that moves the bar, or does nothing."""
    if not shown:
        yield lambda done, error: None
        return
    with needs_extra("factorize(progress=True)", "factorize"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
    described = TextColumn("{task.description}")
    with Progress(described, BarColumn(), MofNCompleteColumn(), Remaining()) as bar:
        task = bar.add_task("factorize", total=total)
        yield lambda done, error: bar.update(task, completed=done, description=f"error {error:.6g}")
