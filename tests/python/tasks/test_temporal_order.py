import pytest
import torch
from paramixer.tasks.task import Classes, Counts, Tokens
from paramixer.tasks.temporal_order import SYMBOLS, temporal_order


@pytest.fixture(scope="module")
def samples():
    task = temporal_order(128, Counts(4000, 1, 1))
    return task.collate([task.train[i] for i in range(4000)])


def test_class_is_the_order_of_the_two_signs(samples):
    signs = samples.x[samples.x >= 4].view(-1, 2)  # fails unless every sample has two
    assert samples.x.dtype == samples.y.dtype == torch.int64
    assert torch.equal(samples.y, 2 * (signs[:, 0] - 4) + signs[:, 1] - 4)
    assert ((samples.x >= 4).sum(1) == 2).all()


def test_symbols_classes_and_places_are_uniform(samples):
    shares = torch.bincount(samples.x[samples.x < 4]) / (4000 * 126)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.0025)  # 4 deviations
    assert (torch.bincount(samples.y) / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.028)
    assert (samples.x[:, :64] >= 4).sum().item() == pytest.approx(4000, abs=180)


def test_floor_of_counting_is_what_counting_reaches(samples):
    guess = torch.where((samples.x == 5).sum(1) == 2, 3, (samples.x == 5).sum(1))
    right = (guess == samples.y).double().mean().item() * 100
    task = temporal_order(256)
    assert right == pytest.approx(task.floors["signs counted, their order unknown"], abs=2.8)
    assert task.input == Tokens(6, symbols=SYMBOLS) and task.output == Classes(4)
