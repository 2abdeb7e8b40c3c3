import pytest
import torch
from paramixer._lbfgs import History, Point, line_search


def bowl(size):
    """A convex quadratic: its Hessian, and the function with its gradient."""
    root = torch.randn(size, size, dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(size, dtype=torch.float64)
    return hessian, lambda x: ((x @ hessian @ x) / 2, hessian @ x)


def inverse_hessian(pairs, size):
    """BFGS, update by update, from the usual multiple of the identity."""
    step, change = pairs[-1]
    inverse = torch.eye(size, dtype=torch.float64) * (step @ change) / (change @ change)
    for step, change in pairs:
        rho = 1 / (step @ change)
        left = torch.eye(size, dtype=torch.float64) - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.mT + rho * torch.outer(step, step)
    return inverse


def test_direction_is_that_of_the_updates_one_by_one():
    size, kept = 12, 4
    hessian, _ = bowl(size)
    history, pairs = History(torch.zeros(size, dtype=torch.float64), kept), []
    for _ in range(2 * kept + 1):
        step, gradient = torch.randn(2, size, dtype=torch.float64)
        pairs.append((step, hessian @ step))
        history.add(*pairs[-1])
        expected = -inverse_hessian(pairs[-kept:], size) @ gradient
        torch.testing.assert_close(history.direction(gradient), expected, rtol=1e-9, atol=1e-9)


def test_pairs_without_positive_curvature_are_left_out():
    history, gradient = History(torch.zeros(3), 2), torch.tensor([3.0, -1.0, 0.0])
    history.add(torch.ones(3), -torch.ones(3))
    assert history.count == 0
    torch.testing.assert_close(history.direction(gradient), -gradient / 4)


def test_line_search_meets_the_wolfe_conditions():
    place, (_, function) = torch.ones(5, dtype=torch.float64), bowl(5)
    start = Point(place, *function(place))
    for scale in (1e-6, 1e-2, 1.0, 1e2):
        direction = -scale * start.gradient
        found = line_search(function, start, direction)
        value, slope = start.along(direction)
        step = (found.place - start.place).norm() / direction.norm()
        assert found.value <= value + 1e-4 * step * slope
        assert abs(found.along(direction)[1]) <= 0.9 * abs(slope)


def test_line_search_survives_what_is_no_number():
    def function(x):  # overflows beyond 1
        inside = (x < 1).all()
        value = (x - 0.9).square().sum()
        return (value, 2 * (x - 0.9)) if inside else (value * torch.inf, x * torch.nan)

    start = Point(torch.zeros(2), *function(torch.zeros(2)))
    found = line_search(function, start, torch.full((2,), 50.0))
    assert found.value < start.value
    assert (found.place < 1).all()


def test_line_search_gives_up_where_nothing_is_lower():
    start = Point(torch.zeros(2), torch.tensor(1.0), torch.ones(2))
    rising = lambda x: (1.001 + x.abs().sum(), torch.ones(2))
    assert line_search(rising, start, -start.gradient) is None


def test_minimizes_rosenbrock():
    def function(x):
        x = x.detach().requires_grad_()
        value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        return value.detach(), torch.autograd.grad(value, x)[0]

    x = torch.zeros(10, dtype=torch.float64)
    here, history = Point(x, *function(x)), History(x, 10)
    for _ in range(80):
        found = line_search(function, here, history.direction(here.gradient))
        if found is None:
            break
        history.add(found.place - here.place, found.gradient - here.gradient)
        here = found
    torch.testing.assert_close(here.place, torch.ones_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_line_search_goes_on_where_values_are_equal_by_rounding(dtype):
    """A saddle: one part in 10^12 lower at step 1, but steeper and steeper beyond."""

    def function(x):
        return 1 - x.sinh().square().sum(), -2 * x.sinh() * x.cosh()

    place = torch.full((3,), 1e-6, dtype=dtype)
    start = Point(place, *function(place))
    found = line_search(function, start, -start.gradient)
    assert found.value <= start.value
    assert (found.place > 2 * place).all()


def test_line_search_leaves_no_gradient_that_is_no_number():
    start = Point(torch.zeros(1), torch.tensor(1.0), torch.ones(1))
    nan = torch.full((1,), torch.nan)
    assert line_search(lambda x: (torch.tensor(0.0), nan), start, -torch.ones(1)) is None


def test_no_line_search_uphill():
    start = Point(torch.zeros(1), torch.tensor(1.0), torch.ones(1))
    assert line_search(lambda x: pytest.fail("evaluated"), start, torch.ones(1)) is None
