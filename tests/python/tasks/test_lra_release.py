import numpy as np
import pytest
import torch
from paramixer.tasks.lra_release import (
    character_tokens,
    find_folder,
    grey_table,
    random_rows,
    read_label,
    table_rows,
)


@pytest.mark.parametrize(
    "where",
    ["", "lra_release/lra_release/here", "lra_release/here", "here", "other", "lra_release"],
)
def test_outer_and_inner_folders_are_found(tmp_path, where):
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    (tmp_path / where / "data.tsv").touch()
    found = find_folder("task", tmp_path, ("here", "other"), ["data.tsv"], "there")
    assert found.samefile(tmp_path / where)


def test_the_inner_copy_is_preferred(tmp_path):
    for place in ("lra_release/here", "lra_release/lra_release/here"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "data.tsv").touch()
    found = find_folder("task", tmp_path, ("here",), ["data.tsv"], "there")
    assert found == tmp_path / "lra_release/lra_release/here"


def test_absent_data_are_told_once_and_whole(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        find_folder("task", tmp_path, ("here",), ["a.tsv", "b.tsv"], "a far place")
    told = str(error.value)
    assert told.startswith(
        f"task: folder must be, or contain, one with a.tsv, b.tsv (got {tmp_path}"
    )
    assert f"{tmp_path}/lra_release/lra_release/here" in told and "come from a far place" in told


def test_rows_have_no_quoting_and_any_line_ends(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_bytes(b'1\t"a\r\n0\tb"\rc\n1\t\n2\t\xff')
    rows = [cells for _, cells in table_rows("task", path, 2)]
    assert rows == [[b"1", b'"a'], [b"0", b'b"\rc'], [b"1", b""], [b"2", b"\xff"]]
    with pytest.raises(ValueError, match=r"table.tsv, line 1 must have 3 columns .* \(got 2\)"):
        list(table_rows("task", path, 3))


def test_labels():
    assert [read_label("t", "w", text, 2) for text in (b"1.0", "0", 1, b" 1")] == [1, 0, 1, 1]
    for text in (b"2", "-1", "0.5", "nan", b"", "good"):
        with pytest.raises(ValueError, match=r"t: w: label must be in 0 \.\. 1 \(got "):
            read_label("t", "w", text, 2)


def test_characters_are_code_points():
    tokens = character_tokens("aé€😀".encode() + b"\xff")
    assert tokens.tolist() == [97, 233, 0x20AC, 65535, 0xFFFD] and tokens.dtype == np.uint16


def test_grey_values():
    assert grey_table("honest", 0.5, 0.5).tolist() == list(range(1, 257))
    assert grey_table("lra", 0.5, 0.5).tolist() == list(range(256))
    assert grey_table("s4", 0.5, 0.5)[[0, 255]].tolist() == [-1, 1]


def test_random_rows_are_those_of_random_split():
    generator = torch.Generator().manual_seed(42)
    expected = torch.utils.data.random_split(range(20), [16, 2, 2], generator)
    assert [rows.tolist() for rows in random_rows(20, [16, 2, 2])] == [
        part.indices for part in expected
    ]
