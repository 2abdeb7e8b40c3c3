import pytest
from lra_support import check_lengths, disjoint, read, same_for_any_workers
from paramixer.tasks.lra_retrieval import FILES, VARIANTS, lra_retrieval

ODD = (b'0\tA1\tB1\t"an open quote\t\xff\xfe not UTF-8 "\n', b"1.0\tA2\tB2\ta\tb b\r\n")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "lra_release" / "lra_release" / "tsv_data"
    place.mkdir(parents=True)
    for name in FILES:
        lines = [b"1.0\tP%d\tQ%d\t%b one\t%b two\n" % (i, i, b"x" * i, b"y") for i in range(5)]
        (place / name).write_bytes(b"".join([*ODD, *lines]))
    return tmp_path


def text(x):
    return bytes(x.sub(1).tolist())


def test_pairs_come_back_without_any_quoting(folder):
    task = lra_retrieval(folder)
    first, second = (tuple(map(text, task.train[i].x)) for i in (0, 1))
    assert first == (b'"an open quote', b'\xff\xfe not UTF-8 "')
    assert second == (b"a", b"b b")
    assert task.train.labels.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert [len(part) for part in task.parts] == [7, 7, 7] and disjoint(task)
    assert task.sequences == 2 and task.floors == {"majority class": 85.71}


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_lengths_and_workers(folder, variant):
    task = lra_retrieval(folder, variant)
    check_lengths(task)
    assert same_for_any_workers(task)
    x, mask, y = read(task, "train", batch_size=7)[0]
    assert x.shape == mask.shape == (7, 2, max(task.train.lengths)) and len(y) == 7
    assert (x[~mask] == 0).all() and (x[mask] > 0).all()


def test_s4_has_the_characters_of_the_training_part(folder):
    place = folder / "lra_release/lra_release/tsv_data"
    (place / FILES[2]).write_bytes(b"1\t\t\taZ\tb\n")
    task = lra_retrieval(place, "s4")
    symbols = task.input.symbols
    assert "\ufffd" in symbols and "Z" not in symbols
    assert [symbols[token] for token in task.test[0].x[0]] == ["a", "<unk>", "<eos>"]


def test_long_texts_are_cut(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"1\t\t\t%b\t%b\n" % (b"x" * 12_000, b"y" * 3999))
    lengths = {v: [len(x) for x in lra_retrieval(tmp_path, v).train[0].x] for v in VARIANTS}
    assert lengths == {"honest": [4000, 3999], "lra": [4000, 3999], "s4": [4000, 4000]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1\tA\tB\tone text\n", r"pairs.eval.tsv, line 1 must have 5 columns .* \(got 4\)"),
        (b"1\tA\tB\ta\tb\n2.0\tA\tB\ta\tb\n", r"line 2: label must be in 0 \.\. 1 \(got b'2.0'\)"),
        (b"label\tid1\tid2\ta\tb\n", r"line 1: label must be in .* \(got b'label'\)"),
    ],
)
def test_malformed_lines_are_refused(folder, line, message):
    place = folder / "lra_release/lra_release/tsv_data"
    (place / FILES[1]).write_bytes(line)
    with pytest.raises(ValueError, match=message):
        lra_retrieval(folder)
    assert not list(place.glob("paramixer-stores/*.store"))


def test_absent_files_and_unpublished_variants(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"new_aan_pairs.eval.tsv.*tsv_data.*lra_release.gz"
    ):
        lra_retrieval(tmp_path)
    with pytest.raises(ValueError, match="variant must be one of"):
        lra_retrieval(tmp_path, "paramixer")
