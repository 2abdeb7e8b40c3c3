import pytest
import torch
from paramixer.tasks.adding import TOLERANCE, adding
from paramixer.tasks.task import Counts, Reals, Regression


@pytest.fixture(scope="module")
def samples():
    task = adding(128, Counts(4000, 1, 1))
    return task.collate([task.train[i] for i in range(4000)])


def test_target_is_the_published_function_of_the_marked_values(samples):
    values, marks = samples.x.double().unbind(-1)
    assert samples.x.dtype == samples.y.dtype == torch.float32
    assert set(marks.unique().tolist()) == {0, 1} and (marks.sum(1) == 2).all()
    torch.testing.assert_close(samples.y.double(), 0.5 + (values * marks).sum(1) / 4)
    assert samples.y.min() >= 0 and samples.y.max() <= 1


def test_values_and_places_are_uniform(samples):
    values, marks = samples.x.unbind(-1)
    assert values.min() > -1 and values.max() <= 1
    assert values.mean().item() == pytest.approx(0, abs=0.004)
    assert values.var().item() == pytest.approx(1 / 3, abs=0.003)
    assert (marks.mean(0) * 64).mean() == 1
    assert marks[:, :64].sum().item() == pytest.approx(4000, abs=180)  # 4 deviations


def test_floor_is_what_a_constant_reaches(samples):
    right = ((samples.y - 0.5).abs() < TOLERANCE).double().mean().item() * 100
    task = adding(1024)
    assert right == pytest.approx(task.floors["constant 0.5"], abs=2.3)  # 4 deviations
    assert task.input == Reals(2) and task.output == Regression(0.04)


def test_published_rows_are_those_of_the_length():
    rows = {row.model: row.value for row in adding(2048).published}
    assert rows["Paramixer"] == 0 and rows["Transformer"] == 84.9
    assert adding(100).published == ()
