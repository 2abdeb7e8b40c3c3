import json
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
from paramixer.tasks import store
from paramixer.tasks.store import Content, Row, open_store, prepare

TEXTS = [b"abc", b"", b"zz", b"\xff\x00q"]


def rows(texts=TEXTS):
    for number, text in enumerate(texts):
        yield Row((np.frombuffer(text, np.uint8),), number % 2, number // 2)


def content(**options):
    return Content(rows(), ("one", "two"), 256, facts={"skipped": 3}, **options)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_text("data")
    return path


@pytest.fixture
def path(tmp_path, source):
    path = tmp_path / "stores" / "task.store"
    prepare(path, {"level": "bytes"}, [source], content)
    return path


def refuse():
    raise AssertionError("the store was made again")


def names(folder):
    return sorted(one.name for one in folder.iterdir() if not one.name.endswith(".lock"))


def test_everything_comes_back(path):
    opened = open_store(path, verify=True)
    assert [bytes(opened.sequence(i)) for i in range(4)] == TEXTS
    assert opened.labels.tolist() == [0, 1, 0, 1] and opened.groups.tolist() == [0, 0, 1, 1]
    assert opened.lengths.tolist() == [[3], [0], [2], [3]] and opened.facts == {"skipped": 3}
    assert opened.arrays["histogram"][1, ord("z")] == 2 and opened.arrays["histogram"].sum() == 8
    assert opened.arrays["tokens"].dtype == np.uint8
    assert names(path.parent) == ["task.store"]


def test_several_sequences_and_many_tokens(tmp_path):
    pairs = [Row((np.array([i, 300]), np.array([7])), 0, 0) for i in range(3)]
    made = prepare(tmp_path / "s", {}, [], lambda: Content(pairs, ["all"], 301, sequences=2))
    assert made.sequence(2, 0).tolist() == [2, 300] and made.sequence(2, 1).tolist() == [7]
    assert made.lengths.tolist() == [[2, 1]] * 3 and made.arrays["tokens"].dtype == np.uint16


def test_no_samples(tmp_path):
    made = prepare(tmp_path / "s", {}, [], lambda: Content([], ["all"], 256))
    assert len(made.labels) == 0 and made.lengths.shape == (0, 1)


def test_a_store_is_opened_and_not_made_again(path, source):
    prepare(path, {"level": "bytes"}, [source], refuse)


def test_other_parameters_sources_or_versions_make_it_again(path, source, monkeypatch):
    def times(parameters):
        prepare(path, parameters, [source], lambda: calls.append(1) or content())
        return len(calls)

    calls = []
    assert times({"level": "characters"}) == 1
    source.write_text("other data")
    assert times({"level": "characters"}) == 2
    os.utime(source, ns=(1, 1))
    assert times({"level": "characters"}) == 3 == times({"level": "characters"})
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert times({"level": "characters"}) == 4 == times({"level": "characters"})


def test_samples_are_told_while_they_are_read(tmp_path):
    told = []
    prepare(tmp_path / "s", {}, [], content, told.append)
    assert sum(told) == 4
    prepare(tmp_path / "s", {}, [], refuse, told.append)
    assert sum(told) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, error):
    def interrupted():
        yield from rows(TEXTS[:2])
        raise error

    path = tmp_path / "task.store"
    with pytest.raises(error):
        prepare(path, {}, [], lambda: Content(interrupted(), ("one", "two"), 256))
    assert names(tmp_path) == []
    assert len(prepare(path, {}, [], content).labels) == 4


def test_an_interrupted_remake_keeps_the_old_one_unbelieved(path, source):
    whole = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        prepare(path, {}, [source], content, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert path.read_bytes() == whole
    assert prepare(path, {}, [source], content).description["parameters"] == {}


def test_what_a_killed_preparation_left_is_replaced(tmp_path):
    (tmp_path / ".task.store.partial").write_bytes(b"paramixer store\n half")
    prepare(tmp_path / "task.store", {}, [], content)
    assert names(tmp_path) == ["task.store"]


def test_damage_is_refused_wherever_it_is(path):
    whole = path.read_bytes()
    description = json.dumps(open_store(path).description).encode()
    for place in (0, 30, 45, 128, len(whole) - len(description) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="it is damaged, .*; delete it, and it is made again"):
            open_store(path)


@pytest.mark.parametrize("size", [0, 50, 127, 200, -1])
def test_a_cut_file_is_refused(path, source, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"store: .*task\.store must have .* bytes \(got \d+\)"):
        prepare(path, {"level": "bytes"}, [source], refuse)


def test_large_arrays_are_compared_on_demand(path, monkeypatch):
    monkeypatch.setattr(store, "MOST_CHECKED", 5)
    damaged = bytearray(path.read_bytes())
    damaged[128] ^= 1
    path.write_bytes(damaged)
    open_store(path)
    with pytest.raises(ValueError, match="tokens with SHA-256"):
        open_store(path, verify=True)


def test_a_worker_maps_the_file_itself(path):
    dumped = pickle.dumps(open_store(path))
    assert len(dumped) < 500 and bytes(pickle.loads(dumped).sequence(0)) == b"abc"


def slow_content(made):
    made.put(1)
    time.sleep(0.2)
    return content()


def make_store(path, made):
    prepare(path, {}, [], lambda: slow_content(made))


def test_of_several_processes_one_makes_it(tmp_path):
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    processes = [
        context.Process(target=make_store, args=(tmp_path / "task.store", made)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert made.get() == 1 and made.empty()
