"""The generator is compared with a second implementation of everything: values, files, lengths."""

import csv
import re
import statistics
from itertools import pairwise

import numpy as np
import pytest
from paramixer.tasks import listops
from paramixer.tasks.files import RECORD_NAME
from paramixer.tasks.listops import Counts, Grammar, Preset

MINI = listops.PRESETS["mini"].grammar
SMALL = Preset(Grammar(max_depth=4, max_args=3, min_length=4, max_length=20), Counts(3000, 50, 70))
FUNCTIONS = {
    "MIN": min,
    "MAX": max,
    "MED": lambda *values: int(statistics.median(values)),
    "SM": lambda *values: sum(values) % 10,
}


def value(expression):
    """Python's own parser reads the expression, as nested calls."""
    calls = re.sub(r"(\d)", r"\1,", expression).replace("]", "),")
    return eval(re.sub(r"\[(\w+)", r"\1(", calls), {"__builtins__": {}}, FUNCTIONS)[0]


def expressions(samples):
    tokens, offsets = samples.tokens, samples.offsets
    words = np.array(listops.TOKENS)[tokens]
    return [" ".join(words[a:b]) for a, b in pairwise(offsets)]


def length_distribution(grammar):
    """Exact shares of the lengths 0 .. max_length - 1 before any is drawn again.

    By generating functions: the coefficient of z^n in P_d(z) is the probability of n tokens for a
    node at depth d, P_d = (1 - p) z + p z^2 mean over k = 2 .. max_args of P_{d+1}^k.
    """
    size, p = grammar.max_length, grammar.operator_probability
    shares = np.zeros(size)
    shares[1] = 1
    for _ in range(grammar.max_depth - 1):
        transform = np.fft.rfft(shares, 2 * size)
        power, total = shares, np.zeros(size)
        for _ in range(2, grammar.max_args + 1):
            power = np.fft.irfft(np.fft.rfft(power, 2 * size) * transform)[:size]
            total += power
        shares = np.zeros(size)
        shares[2:] = p * total[:-2] / (grammar.max_args - 1)
        shares[1] += 1 - p
    return shares


@pytest.fixture(scope="module")
def official():
    return listops.generate(20_000, seed=7)


def test_evaluator_knows_the_published_rules():
    assert value("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]") == 5  # Nangia and Bowman, figure 1
    assert value("[MED 1 2 ]") == 1 and value("[SM [SM 9 9 ] 9 ]") == 7 and value("3") == 3


@pytest.mark.parametrize("grammar", [MINI, Grammar()])
def test_labels_are_the_values(grammar):
    samples = listops.generate(1000, grammar, seed=3)
    assert [value(text) for text in expressions(samples)] == samples.labels.tolist()


def test_lengths_follow_the_exact_distribution(official):
    shares = length_distribution(Grammar())
    assert shares[501:].sum() == pytest.approx(0.082, abs=0.001)  # lra.md: 8.2 % are kept
    kept = shares[501:] / shares[501:].sum()
    lengths = np.diff(official.offsets)
    assert lengths.min() >= 501 and lengths.max() <= 1999
    bins = np.arange(501, 2000, 100)
    expected = np.add.reduceat(kept, bins - 501)
    observed = np.histogram(lengths, [*bins, 2000])[0] / len(lengths)
    deviation = np.sqrt(expected / len(lengths))
    assert (np.abs(observed - expected) < 4 * deviation).all()
    assert lengths.mean() == pytest.approx(1035, abs=11)  # 4 standard errors
    assert np.median(lengths) == pytest.approx(954, abs=17)


def test_labels_and_depths_are_those_of_the_long_range_arena(official):
    shares = np.bincount(official.labels, minlength=10) / len(official.labels)
    assert shares[[0, 9]] == pytest.approx(0.17, abs=0.011)  # measured with the official script
    assert shares[1:9].max() < 0.1 and shares[1:9].min() > 0.06
    assert (official.depths == 9).all()


def test_root_operator_alone_predicts_as_much_as_published(official):
    roots = official.tokens[official.offsets[:-1]]
    table = np.zeros((15, 10))
    np.add.at(table, (roots, official.labels), 1)
    assert table.max(axis=1).sum() / table.sum() == pytest.approx(0.378, abs=0.02)
    assert (table.sum(axis=1)[10:14] / table.sum()) == pytest.approx(0.25, abs=0.013)


def test_samples_depend_on_seed_and_index_alone():
    whole = listops.generate(300, MINI, seed=5, threads=1)
    assert expressions(listops.generate(300, MINI, seed=5, threads=4)) == expressions(whole)
    assert expressions(listops.generate(40, MINI, seed=5, first=100)) == expressions(whole)[100:140]
    assert expressions(listops.generate(300, MINI, seed=6)) != expressions(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, r"listops: count must be in 0 \.\. \d+ \(got -1\)"),
        ({"seed": -1}, r"listops: seed must be in 0 \.\. 18446744073709551615 \(got -1\)"),
        ({"first": -2}, r"listops: first must be in .* \(got -2\)"),
        ({"threads": 0}, r"listops: threads must be in 1 \.\. 1024 \(got 0\)"),
        ({"grammar": Grammar(max_depth=0)}, r"max_depth must be in 1 \.\. 255 \(got 0\)"),
        ({"grammar": Grammar(max_args=1)}, r"max_args must be in 2 \.\. \d+ \(got 1\)"),
        ({"grammar": Grammar(max_args=2**40)}, r"max_args must be in 2 \.\. \d+"),
        ({"grammar": Grammar(max_length=501)}, r"max_length must be at least .* 502 \(got 501\)"),
        ({"grammar": Grammar(operators=("AVG",))}, r"operators must be among .* \(got AVG\)"),
        ({"grammar": Grammar(operators=())}, r"operators must be at least one"),
        ({"grammar": Grammar(max_depth=3, max_args=3)}, r"min_length must be below 17.*got 500"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        listops.generate(**{"count": 1, **arguments})


def test_integers_are_demanded():
    with pytest.raises(TypeError, match=r"listops: count must be an integer \(got 1\.5\)"):
        listops.generate(1.5)


def test_unreachable_lengths_are_told():
    with pytest.raises(
        RuntimeError, match="no expression with min_length 2 < tokens < max_length 4"
    ):
        listops.generate(1, Grammar(min_length=2, max_length=4))


def read(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["Source", "Target"]
    return rows[1:]


def curried(words):
    """The official text, in the way that the official tree is built: one argument a pair."""
    word = words.pop(0)
    if not word.startswith("["):
        return word
    tree = word
    while words[0] != "]":
        tree = f"( {tree} {curried(words)} )"
    return f"( {tree} {words.pop(0)} )"


def test_files_are_in_the_official_format(tmp_path):
    record = listops.write(tmp_path / "listops", SMALL, seed=1)
    for file, count in zip(listops.FILES, SMALL.counts, strict=True):
        raw = (tmp_path / "listops" / file).read_bytes()
        assert raw.startswith(b"Source\tTarget\r\n") and raw.count(b"\r\n") == count + 1
        rows = read(tmp_path / "listops" / file)
        assert len(rows) == count
        for source, target in rows:
            expression = listops.decode(source)
            assert curried(expression.split()) == source
            assert value(expression) == int(target)
        facts = record.parts[file]
        assert facts["samples"] == count and sum(facts["labels"]) == count
        assert facts["lengths"]["least"] >= 5 and facts["lengths"]["most"] <= 19


def test_samples_are_distinct_and_in_the_order_of_the_sequence(tmp_path):
    listops.write(tmp_path / "a", SMALL, seed=1, threads=1)
    written = [
        listops.decode(row[0]) for file in listops.FILES for row in read(tmp_path / "a" / file)
    ]
    drawn = expressions(listops.generate(20_000, SMALL.grammar, seed=1))
    distinct = list(dict.fromkeys(drawn))
    assert len(distinct) < len(drawn)
    assert written == distinct[: sum(SMALL.counts)]


@pytest.mark.parametrize("after", [1, 3000, 3049, 3119])
def test_an_interrupted_command_goes_on(tmp_path, after):
    done = 0

    def interrupt(samples):
        nonlocal done
        done += samples
        if done >= after:
            raise KeyboardInterrupt

    folder = tmp_path / "listops"
    with pytest.raises(KeyboardInterrupt):
        listops.write(folder, SMALL, progress=interrupt)
    left = {path.name for path in folder.iterdir()}
    assert left <= {RECORD_NAME, *listops.FILES}
    times = {name: (folder / name).stat().st_mtime_ns for name in left & set(listops.FILES)}

    told = []
    listops.write(folder, SMALL, progress=told.append)
    assert sum(told) == sum(SMALL.counts)
    listops.write(tmp_path / "whole", SMALL)
    for file in listops.FILES:
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    for file, time in times.items():
        assert (folder / file).stat().st_mtime_ns == time  # kept, not written again


def test_complete_files_are_kept_and_damaged_ones_made_again(tmp_path):
    listops.write(tmp_path, SMALL)
    train, test = (tmp_path / listops.FILES[part] for part in (0, 2))
    whole, time = test.read_bytes(), train.stat().st_mtime_ns
    test.write_bytes(whole[:-10])
    listops.write(tmp_path, SMALL)
    assert test.read_bytes() == whole and train.stat().st_mtime_ns == time


def test_other_parameters_are_refused(tmp_path):
    listops.write(tmp_path, SMALL)
    with pytest.raises(ValueError, match="made with seed 0, not 1"):
        listops.write(tmp_path, SMALL, seed=1)


def test_too_few_different_expressions_are_told(tmp_path):
    tiny = Preset(Grammar(max_depth=2, max_args=2, min_length=0, max_length=3), Counts(20, 0, 0))
    with pytest.raises(ValueError, match=r"counts must not exceed .* \(got 10 in \d+ draws\)"):
        listops.write(tmp_path / "tiny", tiny)


def test_impossible_arguments_make_no_folder(tmp_path):
    folder = tmp_path / "listops"
    for preset in (SMALL._replace(counts=Counts(-1, 0, 0)), SMALL._replace(grammar=Grammar(0))):
        with pytest.raises(ValueError, match="listops: "):
            listops.write(folder, preset)
    assert not folder.exists()
