import pytest
from paramixer import tasks


def test_by_name() -> None:
    task = tasks.load("temporal-order", length=128, seed=3)
    assert (task.name, task.length) == ("temporal_order", 128)


@pytest.mark.parametrize("name", tasks.names())
def test_every_name_has_its_maker(name: str) -> None:
    with pytest.raises(TypeError):
        tasks.load(name, no_such_setting=1)


def test_unknown() -> None:
    with pytest.raises(ValueError, match="name must be one of adding, .* got 'mnist'"):
        tasks.load("mnist")
