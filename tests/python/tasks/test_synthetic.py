"""What holds for every task that is generated while it is read."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from paramixer.tasks.adding import adding
from paramixer.tasks.copying import copying
from paramixer.tasks.synthetic import integers, two_places
from paramixer.tasks.task import Counts
from paramixer.tasks.temporal_order import temporal_order
from torch.utils.data import DataLoader

COUNTS = Counts(24, 12, 9)
MAKERS = [adding, temporal_order, copying, partial(copying, scattered=True)]
IDS = ["adding", "temporal_order", "copying", "scattered"]


@pytest.fixture(params=MAKERS, ids=IDS)
def make(request):
    return partial(request.param, counts=COUNTS)


def read(task, part="train", workers=0, **options):
    loader = DataLoader(
        getattr(task, part), 5, collate_fn=task.collate, num_workers=workers, **options
    )
    return [torch.cat(tensors) for tensors in zip(*loader, strict=True)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_samples_are_a_function_of_their_place(make):
    whole = read(make(64, seed=3))
    assert len(whole[0]) == COUNTS.train and whole[1].all()
    for workers in (1, 2):
        assert equal(read(make(64, seed=3), workers=workers), whole)
    assert equal(read(pickle.loads(pickle.dumps(make(64, seed=3)))), whole)
    assert torch.equal(make(64, counts=(5, 1, 1), seed=3).train[4].x, whole[0][4])
    assert not equal(read(make(64, seed=4)), whole)


def test_parts_are_disjoint(make):
    task = make(64, counts=Counts(400, 200, 200))
    rows = [
        sample.x.numpy().tobytes()
        for part in (task.train, task.validation, task.test)
        for sample in (part[i] for i in range(len(part)))
    ]
    assert len(set(rows)) == 800


def test_fresh_epochs_reach_workers_that_run(make):
    task = make(64, fresh=True)
    loader = DataLoader(
        task.train, 5, collate_fn=task.collate, num_workers=2, persistent_workers=True
    )
    epochs = []
    for epoch in (0, 1, 0):
        task.train.set_epoch(epoch)
        epochs.append(torch.cat([batch.x for batch in loader]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_fixed_epochs_and_evaluation_do_not_change(make):
    for task, part in ((make(64), "train"), (make(64, fresh=True), "test")):
        before = read(task, part)
        getattr(task, part).set_epoch(7)
        assert equal(read(task, part), before)


@pytest.mark.parametrize("length", [2**7, 2**20])
def test_any_length(make, length):
    task = make(length)
    assert len(task.test[0].x) == length == task.length == task.test.lengths[0]
    assert len(task.test) == len(task.test.lengths) == COUNTS.test
    with pytest.raises(IndexError, match=r"index must be in 0 \.\. 8 \(got 9\)"):
        task.test[9]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 9}, ValueError, r"length must be in 3\d \.\. 16777216 \(got 9\)"),
        ({"length": 64.5}, TypeError, "length must be an integer"),
        ({"seed": -1}, ValueError, r"seed must be in .* \(got -1\)"),
        ({"counts": (1, -1, 1)}, ValueError, r"counts.validation must be in .* \(got -1\)"),
    ],
)
def test_impossible_arguments_are_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_pairs_of_places_are_equally_likely():
    words = np.random.default_rng(0).integers(0, 2**64, (60_000, 2), dtype=np.uint64)
    pairs = np.array([two_places(row, 4) for row in words[:30_000]])
    assert (pairs[:, 0] < pairs[:, 1]).all()
    counts = np.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16)
    counts = counts[counts > 0]
    assert len(counts) == 6 and np.abs(counts / 30_000 - 1 / 6).max() < 0.009  # 4 deviations
    assert set(integers(words.reshape(-1), 3)) == {0, 1, 2}
    assert integers(np.array([2**64 - 1, 0], dtype=np.uint64), 7).tolist() == [6, 0]
