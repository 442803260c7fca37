"""A file is there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from miniai.base.errors import UserError
from miniai.base.files import atomic_file, check_writable, make_folder, read_json, write_json


def test_what_was_written_is_there_afterwards_and_nothing_else(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.bin") as file:
        file.write(b"new")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_while_writing_leaves_the_old_file_and_no_rubbish(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(tmp_path / "a.bin") as file:
            file.write(b"half")
            raise error

    pytest.raises(error, write_half)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_a_user_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_file(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_new_file_gets_the_users_own_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_file(tmp_path / "a.bin"):
        pass
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def _write(path: Path) -> None:
    with atomic_file(path):
        pass


def test_a_missing_folder_is_a_user_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder does not exist"):
        _write(tmp_path / "no" / "a.bin")


def test_a_path_through_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        _write(tmp_path / "file" / "a.bin")


def test_devices_and_folders_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            _write(path)


def test_asking_whether_a_path_can_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    check_writable(tmp_path / "a.bin")
    check_writable(tmp_path / "new.bin")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    with pytest.raises(UserError, match="folder does not exist"):
        check_writable(tmp_path / "no" / "a.bin")


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "é猫": {"b": "c"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "猫" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}", b"[" * 100_000])
def test_what_is_not_json_is_a_user_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)


def test_a_folder_is_made_with_those_above_it_and_may_be_there_already(tmp_path: Path) -> None:
    for _ in range(2):
        assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("below", "reason"), [("", "a file has that name"), ("more", "a part of the path is a file")])
def test_a_folder_where_a_file_stands_is_a_user_error(tmp_path: Path, below: str, reason: str) -> None:
    (tmp_path / "a").write_text("kept")
    with pytest.raises(UserError, match=f"cannot make the folder .*: {reason}"):
        make_folder(tmp_path / "a" / below)
    assert (tmp_path / "a").read_text() == "kept"
