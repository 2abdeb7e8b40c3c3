import pytest
import torch
from paramixer.tasks.task import Collate, Sample, published


def sample(*lengths, y=0):
    x = tuple(torch.arange(1, length + 1) for length in lengths)
    return Sample(x if len(x) > 1 else x[0], torch.tensor(y))


def test_batches_are_as_long_as_their_longest_sample():
    x, mask, y = Collate(padding=9)([sample(2, y=1), sample(3, y=0)])
    assert x.tolist() == [[1, 2, 9], [1, 2, 3]] and y.tolist() == [1, 0]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_batches_of_fixed_length_without_masks():
    x, mask, _ = Collate(padding=0, pad_to=4, masked=False)([sample(2)])
    assert x.tolist() == [[1, 2, 0, 0]] and mask is None


def test_real_values_are_filled_up_with_zeros():
    batch = [Sample(torch.ones(n, 2), torch.tensor(0.5)) for n in (1, 2)]
    x, mask, y = Collate(padding=None)(batch)
    assert x.tolist() == [[[1, 1], [0, 0]], [[1, 1], [1, 1]]] and mask.sum() == 3
    assert y.dtype == torch.float32


def test_sequences_of_a_sample_stay_together():
    x, mask, y = Collate(padding=0, sequences=2)([sample(1, 3), sample(2, 0)])
    assert x.tolist() == [[[1, 0, 0], [1, 2, 3]], [[1, 2, 0], [0, 0, 0]]]
    assert mask.sum(-1).tolist() == [[1, 3], [2, 0]] and len(y) == 2


def test_published_results_are_chosen_by_variant():
    rows = {row.model: row.value for row in published("listops", "paramixer")}
    assert rows == {"Paramixer CHORD": 39.57, "Paramixer CDIL": 37.78}
    assert {row.variant for row in published("image")} >= {"lra", "s4", "paramixer"}
    assert published("nothing") == ()


@pytest.mark.parametrize("task", ["adding", "listops", "text", "retrieval", "image", "pathfinder"])
def test_published_results_are_percentages_with_a_source(task):
    assert published(task)
    for row in published(task):
        assert 0 <= row.value <= 100 and row.source and row.metric in ("accuracy", "error")
