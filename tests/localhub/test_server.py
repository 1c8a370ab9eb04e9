"""The Hub's server: started, killed, started again, garbage collected."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from shardhub.errors import AddressError, FormatError, NewerFormat, UsageError
from shardhub.localhub import gc, uploads
from shardhub.localhub.catalog import FILE, Catalog
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.server import RunningHub, ServerSettings, running_hub
from tests.localhub.hub_process import hub_process, make_token
from tests.ports import kept

# huggingface_hub 2.4.0 sends LFS bytes in a way httpx2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# Three parts of an upload.
BIG = 2 * uploads.PART_BYTES + 1000


def test_a_hub_killed_while_bytes_come_in_has_them_all_after_the_client_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder, weights = tmp_path / "hub", tmp_path / "w.safetensors"
    with weights.open("wb") as file:
        for _ in range(BIG // 1000):
            file.write(os.urandom(1000))
        file.write(os.urandom(BIG % 1000))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    token = make_token(folder)
    failures: list[BaseException] = []

    def push(api: HfApi) -> None:
        try:
            api.upload_file(path_or_fileobj=weights, path_in_repo="w.safetensors", repo_id="ann/m")
        except BaseException as error:  # noqa: BLE001  # reported by the test below
            failures.append(error)

    with hub_process(folder) as (process, endpoint):
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo("ann/m")
        pusher = threading.Thread(target=push, args=(api,))
        pusher.start()
        # Wait, without a clock, until the second part is under way.
        while not any(file.stat().st_size > uploads.PART_BYTES for file in (folder / "uploads").glob("*")):
            assert pusher.is_alive()
        process.send_signal(signal.SIGKILL)
        process.wait()
    with kept(int(endpoint.rsplit(":", 1)[1])) as port, hub_process(folder, port):
        pusher.join()
        assert failures == []
        assert hashlib.sha256(Path(api.hf_hub_download("ann/m", "w.safetensors")).read_bytes()).hexdigest() == sha256
    assert list((folder / "uploads").iterdir()) == []
    assert list((folder / "tmp").iterdir()) == []


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    token = make_token(tmp_path)
    with hub_process(tmp_path) as (process, endpoint):
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo("ann/m")
        oid = api.upload_file(path_or_fileobj=b"x" * 5000, path_in_repo="w.bin", repo_id="ann/m").oid
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "tmp" / "left-behind").write_bytes(b"half")
    with running_hub(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=token)
        assert api.model_info("ann/m").sha == oid
        assert Path(api.hf_hub_download("ann/m", "w.bin")).read_bytes() == b"x" * 5000
        assert list((tmp_path / "tmp").iterdir()) == []


def test_sigterm_stops_a_hub_with_exit_code_0(tmp_path: Path) -> None:
    with hub_process(tmp_path) as (process, endpoint):
        assert httpx2.get(f"{endpoint}/api/models", timeout=60).json() == []
        process.terminate()
        assert process.wait() == 0


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    with LocalHub(tmp_path):
        with pytest.raises(UsageError, match="in use"):
            LocalHub(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "shardhub.localhub", str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "in use" in done.stderr
    LocalHub(tmp_path).close()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(UsageError, match="is not a Hub's folder"):
        LocalHub(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_or_newer_database_is_refused(tmp_path: Path) -> None:
    LocalHub(tmp_path).close()
    catalog = Catalog(tmp_path)
    with catalog.writing() as connection:
        connection.execute("PRAGMA user_version = 99")
    catalog.close()
    with pytest.raises(NewerFormat, match="later shardhub"):
        LocalHub(tmp_path)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / (FILE + suffix)).unlink(missing_ok=True)
    (tmp_path / FILE).write_text("no database, but text that is long enough for a header" * 100)
    with pytest.raises(FormatError, match="cannot be used"):
        LocalHub(tmp_path)


def test_other_addresses_need_insecure_lan(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="Refusing"), running_hub(tmp_path, ServerSettings(host="0.0.0.0")):
        pass
    with running_hub(tmp_path, ServerSettings(host="0.0.0.0", insecure_lan=True)) as hub:
        token = {"Authorization": f"Bearer {hub.token('ann')}"}
        for host, expected in ((f"127.0.0.1:{hub.port}", 200), ("192.168.1.7:80", 200), ("evil.example", 403)):
            headers = {"Host": host, **token}
            answer = httpx2.get(f"http://127.0.0.1:{hub.port}/api/models", headers=headers, timeout=60)
            assert answer.status_code == expected


def test_a_port_in_use_is_an_address_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings(port=taken.getsockname()[1])
        with pytest.raises(AddressError, match="Cannot listen"), running_hub(tmp_path, settings):
            pass


def test_a_token_made_beside_a_running_hub_works_and_can_be_revoked(hub: RunningHub, repo: str) -> None:
    from shardhub.localhub.tokens import list_tokens, make_token, revoke_token

    beside = Catalog(hub.hub.folder)
    try:
        api = HfApi(endpoint=hub.endpoint, token=make_token(beside, "cleo", groups=["ann"]))
        assert api.whoami()["orgs"] == [{"type": "org", "name": "ann"}]
        assert api.repo_exists(repo)
        (cleo,) = [record for record in list_tokens(beside) if record.user == "cleo"]
        revoke_token(beside, cleo.id)
        with pytest.raises(HfHubHTTPError):
            api.whoami()
        with pytest.raises(UsageError):
            revoke_token(beside, cleo.id)
    finally:
        beside.close()


def test_gc_keeps_what_is_referenced_or_young_and_deletes_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    with running_hub(folder) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("ann"))
        api.create_repo("ann/m")
        contents = {name: name.encode() * 3000 for name in ("tagged", "squashed", "current", "shared", "gone")}
        blobs = {name: hub.hub.store.path(hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
        first = api.upload_file(path_or_fileobj=contents["tagged"], path_in_repo="w.bin", repo_id="ann/m").oid
        api.create_tag("ann/m", tag="v1")
        old = api.upload_file(path_or_fileobj=contents["squashed"], path_in_repo="w.bin", repo_id="ann/m").oid
        api.upload_file(path_or_fileobj=contents["current"], path_in_repo="w.bin", repo_id="ann/m")
        api.super_squash_history("ann/m")
        api.create_repo("ann/gone")
        for name in ("shared", "gone"):
            api.upload_file(path_or_fileobj=contents[name], path_in_repo=f"{name}.bin", repo_id="ann/gone")
        api.upload_file(path_or_fileobj=contents["shared"], path_in_repo="s.bin", repo_id="ann/m")
        api.delete_repo("ann/gone")
        assert all(path.exists() for path in blobs.values())
    with LocalHub(folder) as local:
        young = gc.collect_garbage(local)
        assert (young.num_commits, young.num_blobs) == (0, 0)
        done = gc.collect_garbage(local, min_age_s=0)
    assert {name for name, path in blobs.items() if not path.exists()} == {"squashed", "gone"}
    assert (done.num_commits, done.num_blobs) == (2, 2)
    assert done.freed_bytes == 3000 * len("squashed" + "gone")
    with running_hub(folder) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("ann"))
        assert not api.revision_exists("ann/m", old)
        assert Path(api.hf_hub_download("ann/m", "w.bin")).read_bytes() == contents["current"]
        assert Path(api.hf_hub_download("ann/m", "w.bin", revision=first)).read_bytes() == contents["tagged"]
        assert Path(api.hf_hub_download("ann/m", "s.bin")).read_bytes() == contents["shared"]
        # What was collected is taken again.
        api.upload_file(path_or_fileobj=contents["squashed"], path_in_repo="w.bin", repo_id="ann/m")
        assert Path(api.hf_hub_download("ann/m", "w.bin")).read_bytes() == contents["squashed"]


def test_gc_is_refused_while_the_hub_is_served(hub: RunningHub) -> None:
    with pytest.raises(UsageError, match="in use"):
        LocalHub(hub.hub.folder)
