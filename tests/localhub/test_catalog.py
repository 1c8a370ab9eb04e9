"""The Hub's database beside other processes, on a full disk, and in a folder that other users can enter."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from shardhub.errors import DiskFull, ResourceError
from shardhub.localhub import catalog as catalogs
from shardhub.localhub.catalog import FILE, Catalog
from shardhub.localhub.server import RunningHub, running_hub

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another_process(folder: Path) -> Iterator[None]:
    """Another process holds the database's write lock."""
    command = [sys.executable, "-c", LOCK, str(folder / FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            process.stdin.close()


def create(hub: RunningHub, token: str, name: str) -> httpx2.Response:
    url, headers = f"{hub.endpoint}/api/repos/create", {"Authorization": f"Bearer {token}"}
    return httpx2.post(url, json={"name": name, "visibility": "public"}, headers=headers, timeout=60)


def full(connection: sqlite3.Connection) -> None:
    """Fill the disk: the database gets no page beyond those it has."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def test_reads_go_on_and_writes_are_told_later_while_another_process_writes(
    hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds the lock writers get 503 and readers go on; afterwards all is as before."""
    token = hub.token("ann")
    assert create(hub, token, "before").status_code == 200
    with monkeypatch.context() as patch, locked_by_another_process(hub.hub.folder):
        patch.setattr(catalogs, "BUSY_TIMEOUT_S", 0.2)
        refused = create(hub, token, "meanwhile")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert str(hub.hub.folder) not in refused.text
        began_at = time.monotonic()
        patch.setattr(catalogs, "BUSY_TIMEOUT_S", 60.0)
        names = [repo["id"] for repo in httpx2.get(f"{hub.endpoint}/api/models", timeout=60).json()]
        assert names == ["ann/before"]
        assert time.monotonic() - began_at < 30
        patch.setattr(catalogs, "BUSY_TIMEOUT_S", 0.2)
        with pytest.raises(ResourceError, match="in use"):
            Catalog(hub.hub.folder)
    assert create(hub, token, "after").status_code == 200


def test_a_full_disk_is_told_and_takes_writes_again_once_there_is_room(tmp_path: Path) -> None:
    """A write that does not fit changes nothing, and leaves no transaction open."""
    with closing(Catalog(tmp_path)) as catalog:
        with catalog.writing() as connection:
            full(connection)
        with pytest.raises(DiskFull), catalog.writing() as connection:
            connection.execute("INSERT INTO meta VALUES ('large', ?)", (bytes(1 << 20),))
        with catalog.writing() as connection:
            connection.execute("PRAGMA max_page_count=100000")
            connection.execute("INSERT INTO meta VALUES ('large', ?)", (bytes(1 << 20),))
        with catalog.reading() as connection:
            assert connection.execute("SELECT length(value) FROM meta WHERE name = 'large'").fetchone()[0] == 1 << 20


def test_a_full_disk_is_507_for_a_route_that_writes_rows(hub: RunningHub) -> None:
    """A full disk is status 507, and reading goes on."""
    token = hub.token("ann")
    assert create(hub, token, "m").status_code == 200
    with hub.hub.catalog.writing() as connection:
        full(connection)
    lines = [
        {"key": "header", "value": {"summary": "long", "description": "x" * 90_000}},
        {"key": "file", "value": {"path": "x", "content": "eA==", "encoding": "base64"}},
    ]
    url, headers = f"{hub.endpoint}/api/models/ann/m/commit/main", {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(url, content="\n".join(map(json.dumps, lines)), headers=headers, timeout=60)
    assert answer.status_code == 507
    assert httpx2.get(f"{hub.endpoint}/api/models", timeout=60).status_code == 200


def test_files_of_the_database_are_its_owners_alone(tmp_path: Path) -> None:
    """The files are private when they are made; open ones of an earlier version or a backup are made private."""
    folder = tmp_path / "hub"
    with running_hub(folder) as hub:
        assert {path.stat().st_mode & 0o077 for path in folder.glob(f"{FILE}*")} == {0}
        assert len(list(folder.glob(f"{FILE}*"))) == 3
        secret = hub.hub.catalog.secret()
    (folder / FILE).chmod(0o644)
    with running_hub(folder) as hub:
        assert {path.stat().st_mode & 0o077 for path in folder.glob(f"{FILE}*")} == {0}
        assert hub.hub.catalog.secret() == secret  # nobody else could enter the folder


def test_a_signing_key_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    """A key that other users could read counts as disclosed, and is replaced."""
    with closing(Catalog(tmp_path)) as catalog:
        secret = catalog.secret()
    tmp_path.chmod(0o755)
    (tmp_path / FILE).chmod(0o644)
    with closing(Catalog(tmp_path)) as catalog:
        assert catalog.secret() != secret
    with closing(Catalog(tmp_path)) as catalog:
        assert catalog.secret() != secret
