import numpy as np
import pytest
import torch
from lra_support import check_lengths, disjoint, read, same_for_any_workers
from paramixer.tasks import pathfinder
from paramixer.tasks.lra_pathfinder import lra_path_x, lra_pathfinder
from PIL import Image

COUNT = 6  # pictures of each metadata file
HARD = pathfinder.FOLDERS["hard"]


def make(folder, files=2, size=32, difficulties=(HARD,), binary=False):
    """Pictures and metadata as in the release, or as the original generator writes them."""
    generator = np.random.default_rng(0)
    for difficulty in difficulties:
        place = folder / f"pathfinder{size}" / difficulty
        (place / "metadata").mkdir(parents=True)
        for batch in range(files):
            (place / "imgs" / str(batch)).mkdir(parents=True)
            rows = []
            for k in range(COUNT):
                picture = 3 * generator.integers(0, 50, (size, size), dtype=np.uint8)
                name = f"sample_{batch * COUNT + k}.png"
                Image.fromarray(picture).save(place / "imgs" / str(batch) / name)
                rows.append([f"imgs/{batch}", name, k, k % 2, 1.0, 14, 4, 2, 0.5, 1, 1])
            path = place / "metadata" / f"{batch}.npy"
            if binary:
                np.save(path, np.array(rows))
            else:
                lines = "\n".join(" ".join(map(str, row)) for row in rows)
                path.write_bytes(lines.encode() + b"\r\n" * (batch % 2))
    return folder


def picture(folder, batch, k, size=32, difficulty=HARD):
    place = folder / f"pathfinder{size}/{difficulty}/imgs/{batch}"
    return np.asarray(Image.open(place / f"sample_{batch * COUNT + k}.png")).reshape(-1)


def by_row(task):
    """Every sample by its place in the files."""
    return {int(row): part[i] for part in task.parts for i, row in enumerate(part.rows)}


@pytest.mark.parametrize("binary", [False, True])
def test_pictures_and_labels_come_back(tmp_path, binary):
    task = lra_pathfinder(make(tmp_path / "lra_release", files=12, binary=binary).parent)
    samples = by_row(task)
    for batch in (0, 2, 11):  # in the order of their numbers, not of their names
        for k in range(COUNT):
            x, y = samples[batch * COUNT + k]
            np.testing.assert_array_equal(x - 1, picture(tmp_path / "lra_release", batch, k))
            assert y == k % 2
    assert [len(part) for part in task.parts] == [58, 7, 7] and disjoint(task)
    assert task.facts == {"empty pictures": 0} and task.input.vocabulary == 257


@pytest.mark.parametrize("variant", ["honest", "lra", "s4"])
def test_batches_and_workers(tmp_path, variant):
    task = lra_pathfinder(make(tmp_path), variant)
    check_lengths(task)
    assert same_for_any_workers(task) and disjoint(task)
    x, mask, _ = read(task, "train", batch_size=12)[0]
    assert mask.all() and x.shape == ((10, 1024, 1) if variant == "s4" else (10, 1024))
    least = {"honest": 1, "lra": 0, "s4": -1}
    assert x.min() == least[variant]


def test_s4_cuts_as_random_split_does(tmp_path):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(42)).tolist()
    parts = lra_pathfinder(make(tmp_path), "s4").parts
    assert [part.rows.tolist() for part in parts] == [order[:10], order[10:11], order[11:]]


def test_paramixer_mixes_the_difficulties(tmp_path):
    folder = make(tmp_path, files=23, difficulties=pathfinder.FOLDERS.values())
    task = lra_pathfinder(folder, "paramixer")
    sizes = [3 * 3 * COUNT, 3 * 10 * COUNT, 3 * 10 * COUNT]
    assert [len(part) for part in task.parts] == sizes and disjoint(task)
    assert task.input.vocabulary == 50 and task.name == "pathfinder"
    easy = picture(folder, 0, 0, difficulty=pathfinder.FOLDERS["easy"])
    np.testing.assert_array_equal(3 * task.test[0].x, easy)
    with pytest.raises(ValueError, match=r"size must be 32 for variant .* \(got 64\)"):
        lra_pathfinder(folder, "paramixer", size=64)


def test_empty_pictures_are_left_out_and_counted(tmp_path):
    folder = make(tmp_path)
    (folder / f"pathfinder32/{HARD}/imgs/0/sample_2.png").write_bytes(b"")
    task = lra_pathfinder(folder)
    assert sum(map(len, task.parts)) == 11 and task.facts == {"empty pictures": 1}
    assert lra_pathfinder(folder).facts == {"empty pictures": 1}  # the store knows it too


def test_path_x_prefers_the_inner_copy(tmp_path):
    make(tmp_path / "lra_release", size=128)
    inner = make(tmp_path / "lra_release" / "lra_release", size=128, files=1)
    task = lra_path_x(tmp_path)
    assert task.name == "path-x" and task.length == 16384 and sum(map(len, task.parts)) == COUNT
    np.testing.assert_array_equal(by_row(task)[0].x - 1, picture(inner, 0, 0, size=128))
    assert {row.model for row in task.published} >= {"S5", "ChordMixer"}


def test_generated_data_are_read(tmp_path):
    pathfinder.write(tmp_path, 32, "hard", count=20, seed=1)
    pictures, labels, _ = pathfinder.generate(20, pathfinder.options(32, "hard"), seed=1)
    for row, (x, y) in by_row(lra_pathfinder(tmp_path)).items():
        np.testing.assert_array_equal(x - 1, pictures[row].reshape(-1))
        assert y == labels[row]


def spoil(tmp_path, line):
    folder = make(tmp_path, files=1)
    path = folder / f"pathfinder32/{HARD}/metadata/0.npy"
    path.write_text(path.read_text() + "\n" + line)
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("imgs/0 sample_0.png 7", r"0.npy, row 6 must have at least 4 columns"),
        ("imgs/0 sample_0.png 7 2", r"row 6: label must be in 0 \.\. 1 \(got '2'\)"),
        ("imgs/0 sample_9.png 7 1", r"sample_9.png must be a picture \(got .*No such file"),
    ],
)
def test_malformed_metadata_are_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        lra_pathfinder(spoil(tmp_path, line))


def test_malformed_pictures_are_refused(tmp_path):
    folder = make(tmp_path)
    path = folder / f"pathfinder32/{HARD}/imgs/1/sample_6.png"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"sample_6.png must be a picture \(got "):
            lra_pathfinder(folder)
    Image.new("L", (16, 16)).save(path)
    with pytest.raises(ValueError, match=r"must have 32 x 32 pixels \(got \(16, 16\)\)"):
        lra_pathfinder(folder)


def test_pickled_metadata_are_refused(tmp_path):
    folder = make(tmp_path)
    path = folder / f"pathfinder32/{HARD}/metadata/0.npy"
    np.save(path, np.array([["imgs/0", None]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"0.npy must be a plain array"):
        lra_pathfinder(folder)


def test_an_interrupted_preparation_is_not_believed(tmp_path):
    folder = make(tmp_path)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lra_pathfinder(folder, progress=interrupt)
    assert not list(folder.rglob("*.store")) and not list(folder.rglob("*.partial"))
    assert sum(map(len, lra_pathfinder(folder).parts)) == 12


def test_absent_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pathfinder128.*lra_release.gz"):
        lra_path_x(tmp_path)
    (tmp_path / "pathfinder32" / HARD / "metadata").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"metadata must have 1 \.\. 1000 files \*.npy \(got 0\)"):
        lra_pathfinder(tmp_path)
