import sys

import numpy as np
import pytest
import torch
from paramixer.tasks import pathfinder
from paramixer.tasks.files import RECORD_NAME
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.nn import functional


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(pathfinder, "BATCH", 20)
    monkeypatch.setattr(pathfinder, "_CHUNK", 7)


@pytest.mark.parametrize("size", pathfinder.SIZES)
@pytest.mark.parametrize("difficulty", pathfinder.FOLDERS)
def test_pictures_of_every_size_and_difficulty(size, difficulty):
    options = pathfinder.options(size, difficulty)
    pictures, labels, margins = pathfinder.generate(4, options, threads=2)
    assert pictures.shape == (4, size, size) and pictures.dtype == np.uint8
    assert labels.shape == margins.shape == (4,) and set(labels) <= {0, 1}
    assert (pictures.max(axis=(1, 2)) == 255).all() and (pictures.min(axis=(1, 2)) == 0).all()
    assert set(margins) <= set(options.margins)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_pictures_depend_on_seed_and_index_alone(size):
    options = pathfinder.options(size, "easy")
    whole = pathfinder.generate(30, options, seed=5, threads=1)
    for other, one in zip(pathfinder.generate(30, options, seed=5, threads=4), whole, strict=True):
        np.testing.assert_array_equal(other, one)
    for part, one in zip(pathfinder.generate(10, options, seed=5, first=20), whole, strict=True):
        np.testing.assert_array_equal(part, one[20:])
    assert (pathfinder.generate(30, options, seed=6)[0] != whole[0]).any()


def test_labels_are_balanced_and_margins_drawn():
    _, labels, margins = pathfinder.generate(2000, pathfinder.options(128, "easy"), seed=1)
    assert labels.mean() == pytest.approx(0.5, abs=0.045)  # 4 standard errors
    assert (margins == 2).mean() == pytest.approx(0.5, abs=0.045)


def test_options_can_be_set():
    options = pathfinder.options(64, "easy")
    options.distractors = 0
    bare = pathfinder.generate(20, options)[0]
    options.distractors = 12
    assert (bare > 0).mean() < 0.9 * (pathfinder.generate(20, options)[0] > 0).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: pathfinder.options(48, "easy"), r"size must be one of .* \(got 48\)"),
        (lambda o: pathfinder.options(32, "mild"), r"difficulty must be one of .* \(got 'mild'\)"),
        (lambda o: pathfinder.generate(-1, o), r"count must be in .* \(got -1\)"),
        (lambda o: pathfinder.generate(1, o, seed=-1), r"seed must be in .* \(got -1\)"),
        (lambda o: pathfinder.generate(1, o, first=-1), r"first must be in .* \(got -1\)"),
        (lambda o: pathfinder.generate(1, o, threads=0), r"threads must be in .* \(got 0\)"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=f"pathfinder: {message}"):
        call(pathfinder.options(32, "easy"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 4), ("padding", 0), ("thickness", 0.7), ("margins", []), ("contour_length", 1)],
)
def test_impossible_options_are_refused(name, value):
    options = pathfinder.options(32, "easy")
    setattr(options, name, value)
    with pytest.raises(ValueError, match=f"pathfinder: {name} must be "):
        pathfinder.generate(1, options)


def test_paths_without_a_place_are_told():
    options = pathfinder.options(32, "easy")
    options.contour_length = 100
    with pytest.raises(RuntimeError, match="found no place for two paths with contour_length 100"):
        pathfinder.generate(1, options)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_are_in_the_official_format(tmp_path, small_batches):
    record = pathfinder.write(tmp_path, 32, "hard", 50, seed=3)
    place = tmp_path / "pathfinder32" / "curv_contour_length_14"
    batches = [range(20), range(20), range(10)]
    images = [f"imgs/{b}/sample_{k}.png" for b, batch in enumerate(batches) for k in batch]
    assert files(place) == sorted([*images, *(f"metadata/{b}.npy" for b in range(3)), RECORD_NAME])
    pictures, labels, _ = pathfinder.generate(50, pathfinder.options(32, "hard"), seed=3)
    lines = [
        line for b in range(3) for line in (place / f"metadata/{b}.npy").read_text().splitlines()
    ]
    for i, line in enumerate(lines):
        batch, number = divmod(i, 20)
        folder, name, *numbers = line.split(" ")
        assert (folder, name) == (f"imgs/{batch}", f"sample_{number}.png")
        assert numbers == [str(number), str(labels[i]), "1.0", "14", "4", "2", "0.5", "1", "1"]
        with Image.open(place / folder / name) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), pictures[i])
    assert len(lines) == 50
    assert [part["samples"] for part in record.parts.values()] == [20, 20, 10]
    assert np.sum([part["labels"] for part in record.parts.values()], 0)[1] == labels.sum()


@pytest.mark.parametrize("after", [3, 20, 27, 50])
def test_an_interrupted_command_goes_on(tmp_path, small_batches, after):
    done = 0

    def interrupt(pictures):
        nonlocal done
        done += pictures
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pathfinder.write(tmp_path / "a", 16, "easy", 50, progress=interrupt)
    place = tmp_path / "a" / "pathfinder16" / "curv_baseline"
    assert not [name for name in files(place) if "partial" in name]
    for metadata in (place / "metadata").iterdir():  # a reader never misses a file
        for line in metadata.read_text().splitlines():
            assert (place / line.split()[0] / line.split()[1]).is_file()

    told = []
    pathfinder.write(tmp_path / "a", 16, "easy", 50, progress=told.append)
    assert sum(told) == 50
    pathfinder.write(tmp_path / "b", 16, "easy", 50)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_complete_batches_are_kept_and_damaged_ones_made_again(tmp_path, small_batches):
    place = pathfinder.write(tmp_path, 16, "easy", 40).folder
    whole = {name: (place / name).read_bytes() for name in files(place)}
    (place / "imgs/0/sample_3.png").unlink()
    kept = (place / "imgs/1/sample_0.png").stat().st_mtime_ns
    pathfinder.write(tmp_path, 16, "easy", 40)
    assert {name: (place / name).read_bytes() for name in files(place)} == whole
    assert (place / "imgs/1/sample_0.png").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="made with count 40, not 60"):
        pathfinder.write(tmp_path, 16, "easy", 60)


def test_missing_pillow_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(ImportError, match=r"PIL.*pip install paramixer\[train\]"):
        pathfinder.write(tmp_path, 32, "easy", 1)
    assert not any(tmp_path.iterdir())


def test_labels_agree_with_a_flood_fill():
    """Two nearly straight paths far apart: what is within a gap's width of each other is joined."""
    options = pathfinder.options(256, "easy")
    options.distractors, options.continuity, options.seed_distance = 0, 4, 60
    pictures, labels, _ = pathfinder.generate(200, options, seed=1)
    options.path_contrast = 1e-3
    discs, *_ = pathfinder.generate(200, options, seed=1)
    y, x = np.ogrid[-3:4, -3:4]
    same = []
    for picture, disc in zip(pictures > 60, discs > 100, strict=True):
        paths, _ = ndimage.label(ndimage.binary_dilation(picture, y * y + x * x <= 9))
        same.append(len(np.unique(paths[disc])) == 1)
    # The rest are pictures where the two paths come close.
    assert (np.array(same) == labels).mean() > 0.92


def samples(options, first, count):
    pictures, labels, _ = pathfinder.generate(count, options, first=first)
    pictures = torch.from_numpy(pictures).float().div(255).unsqueeze(1)
    return pictures.to(memory_format=torch.channels_last), torch.from_numpy(labels).long()


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = convolution(width, width, 1), convolution(width, width, 1)

    def forward(self, x):
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def convolution(before, after, stride, size=3):
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
    )


def small_network(width):
    return nn.Sequential(
        *(convolution(1, width, 2, 5), nn.ReLU(), Residual(width), Residual(width)),
        *(convolution(width, 2 * width, 2), nn.ReLU(), Residual(2 * width), Residual(2 * width)),
        *(convolution(2 * width, 2 * width, 2), nn.ReLU(), nn.Flatten()),
        nn.Linear(2 * width * 4 * 4, pathfinder.CLASSES),
    )


@pytest.mark.slow
def test_the_label_is_in_the_picture():
    """A small convolutional network learns to read it off easy pictures of 32 pixels.

    It begins with short paths and no distractors: with the whole task at once it takes far longer.
    """
    options = pathfinder.options(32, "easy")
    model = small_network(16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    stages = [(2, 0), (3, 2), (4, 5), (5, 7), (6, 10)]  # segments of a path, distractors
    options.contour_length, options.distractors = stages.pop(0)
    running = 0.5
    for step in range(6000):
        if running > 0.88 and not stages:
            break
        if running > 0.85 and stages:
            options.contour_length, options.distractors = stages.pop(0)
            running = 0.5
        pictures, labels = samples(options, 64 * step, 64)
        result = model(pictures)
        functional.cross_entropy(result, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        running += 0.02 * ((result.argmax(1) == labels).float().mean().item() - running)
    model.eval()
    with torch.no_grad():
        pictures, labels = samples(pathfinder.options(32, "easy"), 10**6, 2000)
        accuracy = (model(pictures).argmax(1) == labels).float().mean().item()
    print(f"accuracy {accuracy:.3f}")
    assert accuracy > 0.8
