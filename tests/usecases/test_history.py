"""The history of chats: private, bounded, and shared by chats side by side."""

from __future__ import annotations

from shardhub.usecases.history import MAX_ENTRIES, History


def test_entries_are_read_again(tmp_path) -> None:
    """Texts of several lines stay whole; only the user can read the file and its folder."""
    history = History(tmp_path / "state" / "history")
    assert history.read() == []
    for text in ("one", "two\nlines \u65e5"):
        history.append(text)
    assert History(history.file).read() == ["one", "two\nlines \u65e5"]
    assert history.file.stat().st_mode & 0o777 == 0o600
    assert history.file.parent.stat().st_mode & 0o777 == 0o700


def test_file_that_others_could_read_is_made_private(tmp_path) -> None:
    """Reading corrects the permissions."""
    history = History(tmp_path / "history")
    history.file.write_text('"one"\n')
    history.file.chmod(0o644)
    assert history.read() == ["one"]
    assert history.file.stat().st_mode & 0o777 == 0o600


def test_file_stays_bounded(tmp_path) -> None:
    """A file of too many lines is cut to the latest, a pasted document is not kept, and broken lines are left out."""
    history = History(tmp_path / "history")
    history.file.write_text("".join(f'"{number}"\n' for number in range(3 * MAX_ENTRIES)) + "{broken\n7\n")
    history.append("x" * 10_000)
    assert history.read()[-1] == str(3 * MAX_ENTRIES - 1)
    assert len(history.file.read_text().splitlines()) == MAX_ENTRIES
    assert history.file.stat().st_mode & 0o777 == 0o600
