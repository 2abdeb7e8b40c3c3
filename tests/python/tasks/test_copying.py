import pytest
import torch
from paramixer.tasks.copying import copying
from paramixer.tasks.task import Classes, Counts


def read(task, count=500):
    return task.collate([task.train[i] for i in range(count)])


@pytest.mark.parametrize("scattered", [False, True])
def test_what_stands_before_the_markers_is_asked_for(scattered):
    task = copying(64, memorized=6, alphabet=5, scattered=scattered)
    x, _, y = read(task)
    assert task.output == Classes(5, positions=6) and y.dtype == torch.int64
    assert (x[:, -6:] == 6).all() and (x[:, :-6] <= 5).all()
    symbols = x[x < 5].view(-1, 6)
    assert torch.equal(symbols, y)
    if not scattered:
        assert torch.equal(x[:, :6], y)
    else:
        assert (x[:, :58] < 5).any(0).all()


def test_symbols_are_uniform():
    y = read(copying(32, alphabet=4), 4000).y
    shares = torch.stack([(y == symbol).double().mean(0) for symbol in range(4)])
    torch.testing.assert_close(shares, torch.full_like(shares, 0.25), atol=0.03, rtol=0)


def test_no_part_asks_for_what_another_taught():
    task = copying(32, Counts(2000, 500, 500), memorized=4, alphabet=4)  # 256 different answers
    answers = [
        {tuple(part[i].y.tolist()) for i in range(len(part))}
        for part in (task.train, task.validation, task.test)
    ]
    assert all(answers) and sum(map(len, answers)) == len(set.union(*answers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memorized": 3}, r"copying: memorized must be in 4 \.\. 1024 \(got 3\)"),
        ({"alphabet": 251}, r"copying: alphabet must be in 4 \.\. 250 \(got 251\)"),
        ({"length": 29}, r"copying: length must be in 30 \.\. .* \(got 29\)"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        copying(**arguments)
