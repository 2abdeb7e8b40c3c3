import numpy as np
import pytest
from lra_support import check_lengths, disjoint, read, same_for_any_workers
from paramixer.tasks import listops
from paramixer.tasks.listops import Counts, Grammar, Preset
from paramixer.tasks.lra_listops import VARIANTS, lra_listops

PRESET = Preset(Grammar(max_depth=4, max_args=3, min_length=4, max_length=20), Counts(40, 8, 9))
LINE = b"( ( ( [MAX 1 ) 4 ) ] )\t4\r\n"


@pytest.fixture
def folder(tmp_path):
    listops.write(tmp_path / "lra_release" / "listops-1000", PRESET)
    return tmp_path


def write(folder, train=LINE, header=listops.HEADER):
    for name in listops.FILES:
        (folder / name).write_bytes(header + (train if name == listops.FILES[0] else LINE))
    return folder


def words(task, part, index):
    x = getattr(task, part)[index].x
    return [task.input.symbols[token] for token in x.tolist()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_expressions_come_back(folder, variant):
    task = lra_listops(folder, variant)
    end = ["<eos>"] if variant == "s4" else []
    for part, name in zip(("train", "validation", "test"), listops.FILES, strict=True):
        lines = (folder / "lra_release/listops-1000" / name).read_text().splitlines()[1:]
        for index, line in enumerate(lines):
            source, target = line.split("\t")
            assert words(task, part, index) == listops.decode(source).split() + end
            assert getattr(task, part)[index].y == int(target)
        assert len(getattr(task, part)) == len(lines)
    check_lengths(task)
    assert disjoint(task) and task.comparable_to == VARIANTS[variant]


def test_batches(folder):
    x, mask, y = read(lra_listops(folder), "train")[0]
    assert len(x) == 3 and (x[mask] > 0).all() and (x[~mask] == 0).all() and len(y) == 3
    x, mask, _ = read(lra_listops(folder, "lra"), "train")[0]
    assert x.shape == (3, 2000) and mask.sum() == (x > 0).sum()
    x, mask, _ = read(lra_listops(folder, "paramixer"), "train")[0]
    assert x.shape == (3, 1999) and mask is None and (x[:, -1] == 15).all()


def test_any_number_of_workers_reads_the_same(folder):
    assert same_for_any_workers(lra_listops(folder))


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_line_ends(tmp_path, ends):
    write(tmp_path, LINE.replace(b"\r\n", ends))
    assert words(lra_listops(tmp_path), "train", 0) == ["[MAX", "1", "4", "]"]


def test_floors_are_those_of_the_data(tmp_path):
    train = b"( [MAX 1 )\t4\n( [MAX 2 )\t4\n( [MIN 2 )\t0\n"
    floors = lra_listops(write(tmp_path, train)).floors
    assert floors == {"majority class": 100, "root operator": 100}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"( [MAX 1 ] )\n", r"basic_train.tsv, line 2 must have 2 columns .* \(got 1\)"),
        (b"( [MAX 1 ] )\t4\t\n", r"line 2 must have 2 columns .* \(got 3\)"),
        (b"( [MAX 1 ] )\t10\n", r"line 2: label must be in 0 \.\. 9 \(got b'10'\)"),
        (b"( [AVG 1 ] )\t1\n", r"line 2: expression must consist of 0 1 .*\(got b'\( \[AVG"),
        (b"( \xff )\t1\n", r"line 2: expression must consist of"),
        (b"\t1\n", r"line 2: expression must consist of"),
    ],
)
def test_malformed_lines_are_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        lra_listops(write(tmp_path, line))
    assert not list(tmp_path.glob("paramixer-stores/*.store"))


def test_absent_files_and_unknown_variants(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lra_listops: .*basic_val.tsv.*lra_release.gz"):
        lra_listops(tmp_path)
    with pytest.raises(ValueError, match=r"variant must be one of \('honest', .* \(got 'best'\)"):
        lra_listops(tmp_path, "best")


def test_the_store_is_kept_where_one_wants(folder, tmp_path):
    told = []
    lra_listops(folder, stores=tmp_path / "stores", progress=told.append)
    lra_listops(folder, "s4", stores=tmp_path / "stores", progress=told.append)
    assert (tmp_path / "stores" / "listops.store").exists() and sum(told) == 57
    assert np.all(lra_listops(folder, stores=tmp_path / "stores").train.lengths > 4)
