import numpy as np
import pytest
import torch
from lra_support import check_lengths, disjoint, read, same_for_any_workers
from paramixer.tasks.lra_image import FILES, VARIANTS, grey_of, lra_image
from PIL import Image

COUNT = 8  # pictures of each file


def records(number):
    generator = np.random.default_rng(number)
    data = generator.integers(0, 256, (COUNT, 3073), dtype=np.uint8)
    data[:, 0] %= 10
    data[0, 1:] = 0  # a black picture
    return data


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cifar-10-batches-bin"
    place.mkdir()
    for number, name in enumerate(FILES):
        records(number).tofile(place / name)
    (place / "batches.meta.txt").write_text("airplane\n")
    return tmp_path


def test_pictures_come_back(folder):
    task = lra_image(folder)
    assert [len(part) for part in task.parts] == [36, 4, 8] and disjoint(task)
    data = records(5)
    assert task.test.labels.tolist() == data[:, 0].tolist()
    np.testing.assert_array_equal(task.test[3].x - 1, grey_of(data[3:4, 1:])[0])
    assert task.train.labels[:COUNT].tolist() == records(0)[:, 0].tolist()
    assert (task.train[0].x == 1).all() and task.input.vocabulary == 257


def test_grey_is_pillows_up_to_its_rounding():
    colours = records(1)[:, 1:]
    for row, grey in zip(colours, grey_of(colours), strict=True):
        image = Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0))
        difference = grey.astype(int) - np.asarray(image.convert("L")).reshape(-1)
        assert np.abs(difference).max() <= 1 and (difference == 0).mean() > 0.99
    assert grey_of(np.full((1, 3), 255, np.uint8)) == 255


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_and_workers(folder, variant):
    task = lra_image(folder, variant)
    check_lengths(task)
    assert same_for_any_workers(task)
    x, mask, y = read(task, "test", batch_size=8)[0]
    assert mask.all() and mask.shape == (8, 1024) and y.dtype == torch.int64
    if variant == "s4":
        assert x.shape == (8, 1024, 1) and x[0, 0] == pytest.approx(-122.6 / 61)
    else:
        assert x.shape == (8, 1024) and (x[0] == (variant == "honest")).all()


def test_parts_of_the_variants(folder):
    assert lra_image(folder, "lra").train.rows.tolist() == list(range(36))
    s4 = lra_image(folder, "s4")
    assert [len(part) for part in s4.parts] == [36, 4, 8] and disjoint(s4)
    assert s4.train.rows.tolist() != list(range(36))
    theirs = lra_image(folder, "paramixer")
    assert [len(part) for part in theirs.parts] == [40, 8, 8] and theirs.validation_is_test


def test_malformed_files_are_refused(folder):
    path = folder / "cifar-10-batches-bin" / FILES[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin must have a multiple of 3073 bytes"):
        lra_image(folder)
    path.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    with pytest.raises(ValueError, match=r"record 1: label must be in 0 \.\. 9 \(got 10\)"):
        lra_image(folder)


def test_absent_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin.*cifar-10-binary.tar.gz"):
        lra_image(tmp_path)
