"""The small tasks: from small packages that the tests make, and from the real ones where they are.

The real archives are looked for in `data/`, as `scripts/make_data.py` does.
"""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lra_support import check_lengths, same_for_any_workers
from mini_support import all_variants, fashion, plaid, write_packages
from paramixer import tasks
from paramixer.tasks import floors, mini, mini_dna, mini_images, packages
from torch.utils.data import Subset

ROOT = Path(__file__).parents[3]
ARCHIVED = (
    "mini-dna",
    "mini-fashion",
    "mini-foods",
    "mini-movies",
    "mini-plaid",
    "mini-retrieval",
    "mini-sources",
    "mini-text",
)
EVERY = [pytest.param(*one, id="-".join([one[0], *one[1].values()])) for one in all_variants()]
LONG = ("mini-dna-512-pairs", "mini-fashion-784", "mini-fashion-784-permuted")
FROM_ARCHIVES = [one for one in EVERY if one.values[0] in ARCHIVED]
REAL = {
    "mini-digits": (1200, 200, 397),
    "mini-dna-256": (25525, 8088, 7176),
    "mini-dna-512-pairs": (25522, 8088, 7176),
    "mini-fashion-196": (54000, 6000, 10000),
    "mini-fashion-784": (54000, 6000, 10000),
    "mini-fashion-784-permuted": (54000, 6000, 10000),
    "mini-foods": (3589, 400, 1000),
    "mini-listops-64": (30000, 1000, 2000),
    "mini-listops-128": (30000, 1000, 2000),
    "mini-mnist-196": (3500, 500, 1000),
    "mini-mnist-784": (3500, 500, 1000),
    "mini-mnist-784-permuted": (3500, 500, 1000),
    "mini-movies": (7424, 1060, 2120),
    "mini-plaid": (459, 73, 537),
    "mini-retrieval": (11276, 1302, 2844),
    "mini-sources": (18994, 2348, 2359),
    "mini-text": (2771, 320, 697),
    "mini-textures": (1767, 279, 651),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small packages, read instead of those that this machine may have."""
    folder = tmp_path_factory.mktemp("packages")
    write_packages(folder)
    installed = packages.Package._root
    with pytest.MonkeyPatch.context() as patch:
        root = lambda package: None if package.archive else installed(package)
        patch.setattr(packages.Package, "_root", root)
        yield folder


def content(part):
    """What a model sees of every sample, as bytes."""
    xs = [part[index].x for index in range(len(part))]
    rows = [x if isinstance(x, tuple) else (x,) for x in xs]
    return [b"|".join(one.numpy().tobytes() for one in row) for row in rows]


def digest(task):
    hashes = hashlib.sha256()
    for part in task.parts:
        for one in content(part):
            hashes.update(one)
        hashes.update(part.labels.tobytes())
    return hashes.hexdigest()


def check(task):
    """What holds for every small task."""
    contents = [set(content(part)) for part in task.parts]
    assert len(set.union(*contents)) == sum(map(len, contents))
    classes = [np.unique(part.labels) for part in task.parts]
    assert all(set(one) == set(range(task.output.count)) for one in classes)
    assert task.name.startswith("mini-") and not task.published and not task.validation_is_test
    for part in task.parts:
        assert len(part.lengths) == len(part) and part.lengths.max() <= task.length
    x, mask, _ = task.collate([task.train[0], task.train[1]])
    assert mask.any(dim=-1).all() and x.shape[: mask.ndim] == mask.shape


@pytest.mark.parametrize(("name", "settings"), FROM_ARCHIVES)
def test_parts_share_nothing_and_have_every_class(folder, tmp_path, name, settings):
    task = tasks.load(name, folder=folder, stores=tmp_path, **settings)
    check(task)
    check_lengths(task)


@pytest.mark.parametrize("name", ["mini-digits", "mini-plaid", "mini-foods", "mini-retrieval"])
def test_any_number_of_workers_reads_the_same(folder, tmp_path, name):
    task = tasks.load(name, folder=folder, stores=tmp_path)

    class Few:
        train, collate = Subset(task.train, range(20)), task.collate

    assert same_for_any_workers(Few)


def test_other_processes_split_alike(folder, tmp_path):
    names = [name for name in ARCHIVED if name != "mini-fashion"]
    here = [digest(tasks.load(name, folder=folder, stores=tmp_path)) for name in names]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_minis\n"
        "test_minis.packages.Package._root = lambda package: None\n"
        "for name in sys.argv[4:]: print(test_minis.digest(test_minis.tasks.load("
        "name, folder=sys.argv[2], stores=Path(sys.argv[3]))))"
    )
    command = [sys.executable, "-c", code, Path(__file__).parent, folder, tmp_path / "more", *names]
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == here


def test_an_interrupted_preparation_leaves_nothing(folder, tmp_path, monkeypatch):
    rows = mini._rows

    def interrupted(samples, kept):
        yield from list(rows(samples, kept))[:50]
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.load("mini-foods", folder=folder, stores=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mini-foods-mini.store.lock"]
    monkeypatch.setattr(mini, "_rows", rows)
    told = []
    task = tasks.load("mini-foods", folder=folder, stores=tmp_path, progress=told.append)
    assert sum(told) == sum(map(len, task.parts)) == 79  # 60 and 20, one of them twice
    told.clear()
    tasks.load("mini-foods", folder=folder, stores=tmp_path, progress=told.append)
    assert not told


@pytest.mark.parametrize("name", ARCHIVED)
def test_an_absent_package_is_named_with_a_remedy(folder, tmp_path, name):
    wanted = rf"{name} needs the package \S+, which is not installed, .*Run: (apt|pip) \w+ \S+"
    with pytest.raises(ImportError, match=wanted):
        tasks.load(name, folder=tmp_path)
    assert not any(tmp_path.iterdir())


def test_twins_are_left_out_of_the_earlier_part(folder, tmp_path):
    for name, count in (("mini-foods", 1), ("mini-fashion", 1)):
        task = tasks.load(name, folder=folder, stores=tmp_path)
        assert task.facts["twins left out"] == count
        assert len(task.test) == {"mini-foods": 20, "mini-fashion": 30}[name]


def test_pictures_are_read_row_by_row(folder, tmp_path):
    images = fashion()["usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"]
    picture = np.frombuffer(gzip.decompress(images)[16:][:784], np.uint8).reshape(28, 28)
    load = (
        lambda variant: tasks.load("mini-fashion", folder=folder, stores=tmp_path, variant=variant)
        .test[0]
        .x
    )
    whole, permuted, quarter = map(load, ("784", "784-permuted", "196"))
    np.testing.assert_allclose(whole.view(28, 28), picture / 255, atol=1e-6)
    assert not torch.equal(whole, permuted)
    assert torch.equal(whole.sort(0).values, permuted.sort(0).values)
    means = picture.reshape(14, 2, 14, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(quarter.view(14, 14), means / 255, atol=0.501 / 255)


def test_documents_and_chapters_stay_whole(folder, tmp_path):
    for name, label in (("mini-sources", r"^(\w+ \d+) "), ("mini-text", r"\n\w+\d+ ")):
        task = tasks.load(name, folder=folder, stores=tmp_path)
        groups = []
        for part in task.parts:
            texts = [bytes((part[index].x - 1).tolist()).decode() for index in range(len(part))]
            if name == "mini-sources":  # of which two have documents
                texts = [text for text in texts if text.startswith(("amazon", "nyt"))]
            groups.append({re.search(label, text)[0] for text in texts})
            assert texts
        assert len(set.union(*groups)) == sum(map(len, groups))


def test_pairs_of_passages(folder, tmp_path):
    task = tasks.load("mini-retrieval", folder=folder, stores=tmp_path)
    for part in task.parts:
        for index in range(0, len(part), 7):
            texts = [bytes((x - 1).tolist()).decode() for x in part[index].x]
            novels = [re.search(r"\n([a-z]+)\d+ ", text)[1] for text in texts]
            assert (novels[0] == novels[1]) == part[index].y.item() and texts[0] != texts[1]


def test_currents_come_back(folder, tmp_path):
    task = tasks.load("mini-plaid", folder=folder, stores=tmp_path)
    assert task.test.lengths.tolist() == list(range(5, 115))
    assert task.test.labels.tolist() == [number % 11 for number in range(110)]
    text = plaid()["sktime/datasets/data/PLAID/PLAID_TEST.ts"].decode()
    lines = text.partition("@data\n")[2].splitlines()
    for index in (0, 50, 109):
        expected = np.array(lines[index].rpartition(":")[0].split(","), dtype=float)
        found = np.sinh(8 * task.test[index].x[:, 0].double().numpy()) / 1000
        np.testing.assert_allclose(found, expected, rtol=5e-4, atol=2e-6)


def test_windows_lie_in_one_part_with_their_shuffles(folder, tmp_path):
    task = tasks.load("mini-dna", folder=folder, stores=tmp_path)
    # 40 genes x 2 windows x (real, shuffled); the gene that occurs twice counts once
    assert [len(part) for part in task.parts] == [480, 160, 320]
    for part in task.parts:
        for index in range(0, len(part), 2):
            real, shuffled = part[index], part[index + 1]
            assert (real.y, shuffled.y) == (1, 0)
            assert torch.equal(real.x.bincount(), shuffled.x.bincount())


@pytest.mark.parametrize("text", ["acgtacgtta" * 20, "a" * 30 + "c", "gattacacatta", "aaaa", "ac"])
def test_shuffled_pairs_keep_every_pair(text):
    window = np.array([mini_dna.LETTERS.index(letter) for letter in text], dtype=np.uint8)
    pairs = lambda letters: Counter(zip(letters[:-1].tolist(), letters[1:].tolist(), strict=True))
    shuffles = [mini_dna.shuffled_pairs(window, number) for number in range(20)]
    assert all(pairs(shuffle) == pairs(window) for shuffle in shuffles)
    assert len(text) < 100 or len({shuffle.tobytes() for shuffle in shuffles}) == 20


def test_bands_of_photographs_share_no_pixel():
    ends = [bounds for _, bounds in sorted(mini_images._BANDS.items())]
    assert ends == [(0, 320), (320, 384), (384, 512)]


NOT_MEASURED = ("mini-fashion", "784")  # 54,000 long samples take an idle machine some minutes


def test_floors_are_those_of_the_tasks():
    stored = json.loads(floors.FILE.read_text())
    expected = {}
    for name, settings in all_variants():
        variant = settings.get("variant", "mini").removesuffix("-permuted")
        if (name, variant) != NOT_MEASURED:
            expected.setdefault(name, set()).add(variant)
    assert {name: set(variants) for name, variants in stored.items()} == expected
    for name, variants in stored.items():
        for variant, record in variants.items():
            given = "" if variant == "mini" else f" --variant {variant}"
            assert record["command"] == f"python scripts/make_data.py floors {name}{given}"
            assert record["accuracy"]["majority class"] == min(record["accuracy"].values())


@pytest.mark.parametrize("name", ["mini-digits", "mini-plaid", "mini-foods", "mini-retrieval"])
def test_floors_are_measured_and_stored(folder, tmp_path, monkeypatch, name):
    task = tasks.load(name, folder=folder, stores=tmp_path)
    known = set(floors.stored_floors(name, "mini"))
    monkeypatch.setattr(floors, "FILE", tmp_path / "floors.json")
    floors.FILE.write_text('{"other": {}}')
    found = floors.store_floors(task, "a command")
    assert set(found) == known and all(0 <= accuracy <= 100 for accuracy in found.values())
    stored = json.loads(floors.FILE.read_text())
    assert stored == {"other": {}, name: {"mini": {"command": "a command", "accuracy": found}}}
    floors._stored.cache_clear()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * (one.id in LONG))
        for one in EVERY
    ],
)
def test_real_data(tmp_path, name, settings):
    place = tmp_path if name == "mini-listops" else ROOT / "data"
    try:
        task = tasks.load(name, folder=place, stores=tmp_path, **settings)
    except ImportError as error:
        pytest.skip(str(error))
    check(task)
    key = "-".join([name, *settings.values()])
    assert tuple(map(len, task.parts)) == REAL[key]
    shares = [np.bincount(part.labels) / len(part) for part in task.parts]
    assert max(abs(shares[0] - share).max() for share in shares[1:]) < 0.05
    majority = task.test.labels == np.bincount(task.train.labels).argmax()
    assert task.floors["majority class"] == pytest.approx(100 * majority.mean(), abs=0.005)
