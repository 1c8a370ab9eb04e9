"""Small files are written whole or not at all, and locks exclude other processes."""

from __future__ import annotations

import os
import threading

import pytest

from shardhub.locks import lock_held, lock_open
from shardhub.whole_files import write_synced, write_whole


def test_file_is_replaced_at_once(tmp_path) -> None:
    """A reader of the old file is undisturbed, and no temporary file is left in the folder."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    with path.open("rb") as reader:
        write_whole(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path) -> None:
    """If a folder is in the way, it stays, and the temporary file is removed."""
    (tmp_path / "file" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == ["file"]


def test_private_file_is_private_from_its_first_byte(tmp_path) -> None:
    """The file is created with its private mode, and is never written through a link."""
    write_whole(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "link", b"data")
    assert (tmp_path / "key").read_bytes() == b"secret"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_lock_is_held_by_one_at_a_time(tmp_path, kind) -> None:
    """A second process waits, or is told that the lock is held; the end of the holder releases it."""
    path = tmp_path / "lock"
    path.mkdir() if kind == "folder" else path.touch()
    entered = threading.Event()

    def wait_for_it() -> None:
        with lock_held(path):
            entered.set()

    with lock_held(path):
        descriptor = os.open(path, os.O_RDONLY)
        assert not lock_open(descriptor)
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        assert not entered.is_set()
    assert entered.wait(30)
    waiter.join()
    assert lock_open(descriptor)
    os.close(descriptor)
