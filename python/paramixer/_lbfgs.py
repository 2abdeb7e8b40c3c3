"""The parts of L-BFGS: its history of pairs, which gives the directions, and its line search.

Those of `torch.optim.LBFGS` go over the history vector by vector, which for the small problems of
`factorize` takes several times as long as the function and its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Of a step along a direction: the share of the first slope's decrease that must be kept, and the
# share of that slope that may be left.
DECREASE, CURVATURE, MOST_TRIALS = 1e-4, 0.9, 25

Function = Callable[[Tensor], tuple[Tensor, Tensor]]  # of a point: value () and gradient
OnLine = tuple[float, float, float]  # step, value and its derivative along the line


class Point(NamedTuple):
    """A place, the function's value and its gradient there."""

    place: Tensor
    value: Tensor
    gradient: Tensor

    def along(self, direction: Tensor) -> tuple[float, float]:
        """The value, and its derivative along the line."""
        slope = torch.dot(self.gradient.flatten(), direction.flatten())
        numbers = torch.stack((self.value, slope)).tolist()
        return numbers[0], numbers[1]


class History:
    """The last pairs of L-BFGS, s = change of place and y = change of the gradient.

    The direction -H g comes from the compact form of Byrd, Nocedal and Schnabel (1994): all pairs
    are read three times an iteration, in products of a matrix and a vector. It divides twice by the
    products of steps with changes, so that all of it is float64; what is of the size of the history
    is on the CPU.

    Args:
        like: a place.
        size: how many pairs.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.size, self.count, self.newest = size, 0, -1
        # Rows s, then rows y; a ring of slots.
        self.pairs = like.new_zeros(2 * size, like.numel(), dtype=torch.float64)
        self.products = torch.zeros(2 * size, size, dtype=torch.float64)  # of all with every y

    def add(self, step: Tensor, change: Tensor) -> None:
        """Takes a pair, in place of the oldest one; leaves out one without positive curvature."""
        resolution = torch.finfo(step.dtype).eps
        step, change = step.flatten().double(), change.flatten().double()
        curvature, square = torch.stack((step @ change, change @ change)).tolist()
        if not curvature > resolution * square:
            return
        self.newest = (self.newest + 1) % self.size
        self.count = min(self.count + 1, self.size)
        self.pairs[self.newest] = step
        self.pairs[self.size + self.newest] = change
        column = (self.pairs @ change).cpu()
        column[self.newest], column[self.size + self.newest] = curvature, square
        self.products[:, self.newest] = column
        self.products[self.size + self.newest] = column[self.size :]  # y with y is symmetric

    def clear(self) -> None:
        """Forgets all pairs."""
        self.count = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """-H g, of the shape of g; without pairs a careful step against g."""
        if self.count == 0:
            return -gradient / gradient.abs().sum().clamp(min=1)
        by_age = torch.arange(self.newest + 1 - self.count, self.newest + 1) % self.size
        dots = (self.pairs @ gradient.flatten().double()).cpu().view(2, self.size)
        with_steps, with_changes = dots[:, by_age, None]
        products = self.products.view(2, self.size, self.size)
        of_steps, of_changes = products[:, by_age[:, None], by_age]
        upper = of_steps.triu()  # s_i . y_j for i <= j
        scale = (of_steps[-1, -1] / of_changes[-1, -1]).item()
        inner = torch.linalg.solve_triangular(upper, with_steps, upper=True)
        outer = of_steps.diagonal()[:, None] * inner + scale * (of_changes @ inner - with_changes)
        factors = torch.zeros(2, self.size, 1, dtype=torch.float64)
        factors[0, by_age] = torch.linalg.solve_triangular(upper.mT, outer, upper=False)
        factors[1, by_age] = -scale * inner
        combined = factors.flatten().to(self.pairs) @ self.pairs
        return -(scale * gradient + combined.view_as(gradient)).to(gradient.dtype)


def line_search(function: Function, start: Point, direction: Tensor) -> Point | None:
    """A place that meets the strong Wolfe conditions, or else decreases enough; if there is one.

    Nocedal and Wright, Numerical Optimization, algorithms 3.5 and 3.6 in one loop: `low` is the
    best step so far that decreases the function enough, `high` one beyond which there is no need
    to look. Values that rounding cannot tell apart are told apart by their slopes (Hager and Zhang,
    2005). It ends early where steps have become too small to make another place.
    """
    start_value, start_slope = start.along(direction)
    if not start_slope < 0:
        return None
    blur = 4 * torch.finfo(direction.dtype).eps * abs(start_value)
    low: OnLine = (0.0, start_value, start_slope)
    high: OnLine | None = None
    best, step = None, 1.0
    for _ in range(MOST_TRIALS):
        place = start.place + step * direction
        if torch.equal(place, (best or start).place):
            break
        trial = Point(place, *function(place))
        value, slope = trial.along(direction)
        enough = value <= start_value + DECREASE * step * start_slope
        about = value <= start_value + blur and slope <= (2 * DECREASE - 1) * start_slope
        if not (enough or about) or value > low[1] + blur or math.isnan(slope):
            high = (step, value, slope)
        else:
            best = trial
            if abs(slope) <= CURVATURE * abs(start_slope):
                break
            if slope * ((high[0] if high else math.inf) - low[0]) >= 0:
                high = low
            low = (step, value, slope)
        step = 2 * step if high is None else _between(low, high)
    return best


def _between(low: OnLine, high: OnLine) -> float:
    """The step at which the cubic through two points is lowest, well inside of them."""
    (a, value_a, slope_a), (b, value_b, slope_b) = low, high
    if a == b:
        return a
    first = slope_a + slope_b - 3 * (value_a - value_b) / (a - b)
    inner = first * first - slope_a * slope_b
    share = 0.5
    if 0 <= inner < math.inf:
        second = math.copysign(math.sqrt(inner), b - a)
        below = slope_b - slope_a + 2 * second
        if below != 0:
            share = min(max(1 - (slope_b + second - first) / below, 0.1), 0.9)
    return a + share * (b - a)
