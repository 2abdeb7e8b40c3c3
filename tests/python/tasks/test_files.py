import pytest
from paramixer.tasks.files import RECORD_NAME, Record, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_file_leaves_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    left = tmp_path / ".folder.partial"
    left.mkdir()
    (left / "half").write_text("")
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "whole").write_text("")
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["whole"]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    assert names(path) == ["new"]


def test_a_part_is_complete_once_recorded_and_while_it_keeps_its_size(tmp_path):
    folder = tmp_path / "data"
    record = Record(folder, {"seed": 1})
    (folder / "part").write_text("12345")
    assert not record.is_complete("part")
    record.complete("part", {"samples": 3})
    again = Record(folder, {"seed": 1})
    assert again.is_complete("part") and again.parts["part"] == {"bytes": 5, "samples": 3}
    (folder / "part").write_text("1234")
    assert not again.is_complete("part")
    (folder / "part").unlink()
    assert not again.is_complete("part")


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path / "basic_train.tsv").write_text("")
    with pytest.raises(ValueError, match=f"folder must be empty .*which has no {RECORD_NAME}"):
        Record(tmp_path, {})


def test_other_parameters_are_named(tmp_path):
    Record(tmp_path, {"seed": 1, "operators": ("MIN", "MAX")})
    Record(tmp_path, {"seed": 1, "operators": ("MIN", "MAX")})
    with pytest.raises(ValueError, match=r"made with seed 1, not 2\); name another one"):
        Record(tmp_path, {"seed": 2, "operators": ("MIN", "MAX")})
