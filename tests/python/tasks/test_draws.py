import numpy as np
from paramixer.tasks.draws import bits, carve, permutation

STREAM = [12384496903482062028, 11740388384777975015]
ORDER = [4, 5, 3, 1, 2, 0]


def test_streams_never_change():
    """Written down once: data sets of other NumPy versions must be the same."""
    assert bits(2, 7, part=1, epoch=2, index=3).tolist() == STREAM
    assert permutation(6, 0).tolist() == ORDER


def test_streams_differ_in_every_name():
    names = [{}, {"part": 1}, {"epoch": 1}, {"index": 1}]
    streams = [bits(4, seed, **name).tolist() for seed in (0, 2**64 - 1) for name in names]
    assert len(np.unique(streams)) == 32
    assert bits(2, 5).tolist() == bits(9, 5)[:2].tolist()


def test_permutation_holds_every_number_once():
    assert np.array_equal(np.sort(permutation(1000, 4)), np.arange(1000))
    assert not np.array_equal(permutation(1000, 4), permutation(1000, 5))


def test_carving_takes_the_same_share_of_every_class():
    labels = np.repeat([3, 1, 2], [100, 50, 9])
    chosen = carve(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [0, 5, 0, 10]
    assert np.array_equal(chosen, carve(labels, 0.1, seed=0))
    assert not np.array_equal(chosen, carve(labels, 0.1, seed=1))


def test_carved_groups_stay_whole():
    labels = np.repeat([0, 1], [600, 300])
    groups = np.array([f"{label} {row // 7}" for row, label in enumerate(labels)])
    chosen = carve(labels, 0.2, seed=1, groups=groups)
    for group in np.unique(groups):
        assert len(set(chosen[groups == group])) == 1
    shares = [chosen[labels == label].mean() for label in (0, 1)]
    assert all(0.17 < share <= 0.2 for share in shares)
