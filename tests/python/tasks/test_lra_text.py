import sys

import numpy as np
import pytest
from lra_support import check_lengths, disjoint, read, same_for_any_workers
from paramixer.tasks.lra_text import VARIANTS, lra_text

BEST = b"The \xffbest!\r\n"  # not UTF-8
COUNT = 30  # reviews of each part and sentiment


def review(part, sentiment, number):
    return BEST if number == 0 else f"{part} {sentiment} {number} caf\u00e9".encode() * number


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for sentiment in ("neg", "pos"):
            place = tmp_path / "aclImdb" / part / sentiment
            place.mkdir(parents=True)
            for number in range(COUNT):
                (place / f"{number}_7.txt").write_bytes(review(part, sentiment, number))
        (tmp_path / "aclImdb" / part / "labeledBow.feat").write_text("0 9:1")
    (tmp_path / "aclImdb" / "train" / "unsup").mkdir()
    (tmp_path / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("no label")
    return tmp_path


def texts(task, part):
    return {bytes(sample.x.sub(1).tolist()) for sample in map(part.__getitem__, range(len(part)))}


def test_bytes_come_back_and_validation_is_carved_from_training(folder):
    task = lra_text(folder)
    assert [len(part) for part in task.parts] == [54, 6, 60]
    assert all(np.bincount(part.labels).tolist() == [len(part) / 2] * 2 for part in task.parts)
    learnt = {review("train", s, n)[:4000] for s in ("neg", "pos") for n in range(COUNT)}
    assert texts(task, task.train) | texts(task, task.validation) == learnt
    assert texts(task, task.test) == {
        review("test", s, n)[:4000] for s in ("neg", "pos") for n in range(COUNT)
    }
    assert disjoint(task) and not task.validation_is_test
    assert task.floors == {"majority class": 50} and task.input.vocabulary == 257


@pytest.mark.parametrize("variant", VARIANTS)
def test_lengths_masks_and_workers(folder, variant):
    task = lra_text(folder / "aclImdb", variant)
    check_lengths(task)
    assert same_for_any_workers(task)
    assert task.validation_is_test == (variant != "honest")
    x, mask, _ = read(task, "train", batch_size=60)[0]
    assert x.max() < task.input.vocabulary
    if variant == "paramixer":
        assert mask is None and x.shape[1] == 4097
    else:
        assert mask.sum() == sum(task.train.lengths) and (x[~mask] == 0).all()
        assert (x[mask] > 0).all()


def test_s4_numbers_characters_by_their_frequency(folder):
    task = lra_text(folder, "s4")
    symbols = task.input.symbols
    assert symbols[:3] == ("<pad>", "<unk>", "<eos>")
    assert "\u00e9" in symbols and "!" not in symbols  # it occurs twice
    reviews = [task.train[index].x.tolist() for index in range(len(task.train))]
    expected = list("The ") + ["<unk>"] + list("best") + ["<unk>"] * 3 + ["<eos>"]
    told = [s if s in symbols else "<unk>" for s in expected]
    assert told in [[symbols[token] for token in one] for one in reviews]
    counts = np.bincount(np.concatenate(reviews), minlength=len(symbols))[3:]
    assert (np.diff(counts) <= 0).all() and counts.min() >= 15


def test_paramixer_reads_bytes_as_python_prints_them(folder):
    task = lra_text(folder, "paramixer")
    symbols = task.input.symbols
    assert len(symbols) == 97 and task.input.padding == 95
    shown = {"".join(symbols[token] for token in task.train[i].x.tolist()) for i in (0, COUNT)}
    assert shown == {r"<cls>b'The \xffbest!\r\n'"}


def test_long_reviews_are_cut(tmp_path, folder):
    (folder / "aclImdb/train/neg/0_7.txt").write_bytes(b"x" * 9000)
    lengths = {variant: lra_text(folder, variant).train.lengths.max() for variant in VARIANTS}
    assert lengths == {"honest": 4000, "lra": 4000, "s4": 4096, "paramixer": 4097}


def test_a_new_review_makes_the_store_again(folder):
    assert len(lra_text(folder, "lra").train) == 2 * COUNT
    (folder / "aclImdb/train/pos/99_1.txt").write_text("one more")
    assert len(lra_text(folder, "lra").train) == 2 * COUNT + 1


def test_absent_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lra_text: .*train/neg.*aclImdb_v1.tar.gz"):
        lra_text(tmp_path)


class Table:
    """Stands in for pyarrow, which need not be installed."""

    def __init__(self, columns):
        self._columns = columns

    def column(self, name):
        return type("Column", (), {"to_pylist": lambda column: self._columns[name]})()


def parquet_folder(tmp_path):
    for part in ("train", "test", "unsupervised"):
        (tmp_path / "plain_text").mkdir(exist_ok=True)
        (tmp_path / "plain_text" / f"{part}-00000-of-00001.parquet").touch()
    return tmp_path


def test_parquet_files_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="lra_text: .*pip install pyarrow, or use the folders"):
        lra_text(parquet_folder(tmp_path))


@pytest.mark.parametrize("label", [1, 2])
def test_parquet_files(tmp_path, monkeypatch, label):
    columns = {"text": ["good", "caf\u00e9"], "label": [label, 0]}
    parquet = type(sys)("pyarrow.parquet")
    parquet.read_table = lambda path, columns: Table(tables[path.name[:5]])
    tables = {"train": columns, "test-": columns}
    pyarrow = type(sys)("pyarrow")
    pyarrow.parquet = parquet
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    folder = parquet_folder(tmp_path)
    if label == 2:
        with pytest.raises(ValueError, match=r"row 0: label must be in 0 \.\. 1 \(got 2\)"):
            lra_text(folder)
        return
    task = lra_text(folder, "lra")
    assert [len(part) for part in task.parts] == [2, 2, 2]
    assert bytes(task.test[1].x.sub(1).tolist()) == "caf\u00e9".encode()
    assert task.test.labels.tolist() == [1, 0]
