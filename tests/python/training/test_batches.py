import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from paramixer.tasks.adding import adding
from paramixer.tasks.task import Classes, Parts, Sample, Task, Tokens
from paramixer.training import Batches, TaskData


class Words:
    """Token sequences of given lengths; sample i holds i + 1 everywhere."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        x = torch.full((int(self.lengths[index]),), index + 1)
        return Sample(x, torch.tensor(index % 2))


def words_task(lengths, **options) -> Task:
    part = Words(lengths)
    return Task(
        "words", "made up", Tokens(1000, 0), Classes(2), 99, Parts(part, part, part), {}, **options
    )


def samples_of(batches: Batches) -> list[int]:
    return [index for plan in batches for index in plan.indices]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=3, max_size=80),
    batch_size=st.integers(1, 20),
    processes=st.integers(1, 3),
    seed=st.sampled_from([None, 0, 7]),
)
def test_every_sample_once_and_the_same_batches_for_any_number_of_processes(
    lengths, batch_size, processes, seed
):
    assume(batch_size >= processes)
    lengths = np.array(lengths)
    one = Batches(lengths, batch_size, seed=seed, processes=1)
    shares = [
        list(Batches(lengths, batch_size, seed=seed, rank=rank, processes=processes))
        for rank in range(processes)
    ]
    assert sorted(samples_of(one)) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    together = [plan for share in shares for plan in share]
    assert sorted(i for plan in together for i in plan.indices) == list(range(len(lengths)))
    assert all(plan.indices for plan in together)
    for plans in zip(*shares, strict=True):
        assert len({plan.length for plan in plans}) == 1
        longest = max(lengths[i] for plan in plans for i in plan.indices)
        assert plans[0].length == max(1, longest)
    if processes == 1:
        assert shares[0] == list(one) and len(one) == len(shares[0])


def test_epochs_and_seeds_differ_and_lengths_are_bucketed():
    lengths = np.random.default_rng(0).integers(1, 1000, 4000)
    batches = Batches(lengths, 20, seed=0)
    first = samples_of(batches)
    assert first != samples_of(Batches(lengths, 20, seed=1))
    batches.set_epoch(1)
    assert first != samples_of(batches)
    padded = sum(plan.length * len(plan.indices) for plan in batches)
    assert padded < 1.05 * lengths.sum()
    assert next(iter(batches)).epoch == 1


@pytest.mark.parametrize(("name", "samples", "size"), [("lengths", 1, 4), ("batch_size", 4, 1)])
def test_more_processes_than_samples(name, samples, size):
    with pytest.raises(ValueError, match=f"Batches: {name} must .*got 1 samples and 2 processes"):
        Batches(np.ones(samples), size, processes=2)


def test_any_number_of_workers_reads_the_same():
    task = adding(64, (50, 10, 10), fresh=True)
    read = []
    for workers in range(3):
        loader = TaskData(task, 8, workers=workers, seed=3).train_dataloader()
        read.append([])
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            read[-1] += [(batch.x, batch.y) for batch in loader]
    for others in read[1:]:
        for (x, y), (other_x, other_y) in zip(read[0], others, strict=True):
            assert torch.equal(x, other_x) and torch.equal(y, other_y)
    assert len(read[0]) == 14 and not torch.equal(read[0][0][0], read[0][7][0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [3, 7])  # in the midst of an epoch, and at its end
def test_a_loader_goes_on_where_its_state_was_written(workers, given):
    data = TaskData(words_task(range(1, 50)), 8, workers=workers, seed=3)
    loader = data.train_dataloader()
    whole = [batch.x for batch in loader]
    loader.sampler.set_epoch(1)
    whole += [batch.x for batch in loader]
    assert len(whole) == 14

    stopped = TaskData(words_task(range(1, 50)), 8, seed=3)
    for _, _ in zip(range(given), stopped.train_dataloader(), strict=False):
        pass
    resumed = TaskData(words_task(range(1, 50)), 8, workers=workers, seed=3)
    resumed.load_state_dict(stopped.state_dict())
    loader = resumed.train_dataloader()
    loader.sampler.set_epoch(0)  # as Lightning does before it knows better
    rest = [batch.x for batch in loader]
    if given == 3:
        loader.sampler.set_epoch(1)
        rest += [batch.x for batch in loader]
    for batch, expected in zip(rest, whole[given:], strict=True):
        assert torch.equal(batch, expected)


def test_masks_only_where_there_is_padding():
    masks = [b.mask for b in TaskData(words_task([3, 3, 3, 2, 2, 1]), 2).test_dataloader()]
    assert masks[0] is None and masks[1].tolist() == [[True] * 3, [True, True, False]]
    [batch] = TaskData(words_task([3, 2]), 2, full_length=True).val_dataloader()
    assert batch.x.shape == (2, 99) and batch.mask.sum() == 5


@pytest.mark.parametrize("name", ["batch_size", "evaluation_batch_size"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"TaskData: {name} must be at least 1"):
        TaskData(words_task([1]), **({"batch_size": 1} | {name: -1}))
