"""Opening files in folders that others prepared."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.errors import ShardhubError
from shardhub.regular_files import check_regular, open_descriptor, opened, read_file
from shardhub.shard import read_pipeline, read_shard
from shardhub.text.tokenizer import Tokenizer
from tests import cut, tiny


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path may be longer than a socket's name can be
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


IN_ITS_PLACE: dict[str, Callable[[Path], None]] = {
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a device": make_device,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_only_files_are_opened(kind: str, tmp_path: Path) -> None:
    """Anything but a regular file is refused by its kind at once, without blocking or leaving it open."""
    path = tmp_path / "file"
    IN_ITS_PLACE[kind](path)
    for use in (open_descriptor, read_file, check_regular):
        with pytest.raises(OSError, match=kind):
            use(path)


def test_file_is_read_and_bounded(tmp_path: Path) -> None:
    """A file is read whole or up to a limit; a missing one raises the system's error."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert (read_file(path), read_file(path, 2)) == (b"abc", b"ab")
    with opened(path) as file:
        assert file.read() == b"abc"
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder with a tokenizer."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("pipes") / "model")
    tiny.save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_pipe_in_a_models_folder_is_an_error(name: str, model: Path, tmp_path: Path) -> None:
    """A named pipe in a model's folder ends in an error, and does not block."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ShardhubError, match=name):
        (Tokenizer if "tokenizer" in name else open_checkpoint)(folder)


@pytest.mark.parametrize("name", ["stage.json", "tensors.json", "config.json", "proof.json"])
def test_pipe_in_a_shards_folder_is_an_error(name: str, model: Path, tmp_path: Path) -> None:
    """A named pipe in the place of a shard's document ends in an error."""
    shard = cut.shard_folder(cut.cut(model, tmp_path / "out", (3,)), 0)
    (shard / name).unlink(missing_ok=True)
    os.mkfifo(shard / name)
    with pytest.raises(ShardhubError, match=name):
        read_shard(shard)


def test_pipe_in_a_pipelines_folder_is_an_error(model: Path, tmp_path: Path) -> None:
    """A named pipe in the place of a file that a manifest names ends in an error."""
    pipeline = cut.cut(model, tmp_path / "out", (3,))
    folder = pipeline.folder
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ShardhubError, match=r"config\.json"):
        read_pipeline(folder)
