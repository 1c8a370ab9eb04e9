"""Uploads over Xet: of the real client, its memory and its deaths, and of clients that lie."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from shardhub.localhub import gc
from shardhub.localhub.hub import LocalHub
from shardhub.localhub.server import RunningHub, running_hub
from tests.localhub.hub_process import hub_process, make_token
from tests.localhub.xet_documents import Range, file_list, xorb
from tests.waiting import wait_until

NAME = "ab" * 32
CHUNKS = (b"first" * 100, b"second" * 100, b"third" * 100)
CONTENT = b"".join(CHUNKS)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHOLE: Sequence[Range] = [(NAME, 0, 3, len(CONTENT))]
# Between two looks at a process's memory.
_LOOK_S = 0.02

_UPLOAD = (
    "import sys; from huggingface_hub import HfApi\n"
    "HfApi(endpoint=sys.argv[1], token=sys.argv[2]).upload_file("
    "path_or_fileobj=sys.argv[4], path_in_repo='w.safetensors', repo_id=sys.argv[3])"
)


def client(endpoint: str, token: str, repo: str, file: Path, home: Path) -> subprocess.Popen[str]:
    """A process of the stock client that uploads one file, with no setting but a home of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", _UPLOAD, endpoint, token, repo, str(file)],
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(home), "PATH": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )


def left_over(hub: Path) -> list[str]:
    """What uploads left in a Hub's folder besides blobs."""
    return [file.name for folder in ("tmp", "xorbs", "uploads") for file in (hub / folder).iterdir()]


class Sender:
    """A client that sends what it is told to a repo's address.

    Attributes:
        url: The repo's address.
    """

    def __init__(self, api: HfApi, repo: str) -> None:
        self._api, self._repo = api, repo
        self.start()

    def start(self) -> None:
        """Ask for the address, and a token for it."""
        answer = httpx2.get(
            f"{self._api.endpoint}/api/models/{self._repo}/xet-write-token/main",
            headers={"Authorization": f"Bearer {self._api.token}"},
            timeout=60,
        )
        answer.raise_for_status()
        self.url, self.token = answer.json()["casUrl"], answer.json()["accessToken"]

    def post(self, path: str, content: Any, token: str | None = None) -> httpx2.Response:
        """Send a body."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return httpx2.post(f"{self.url}/v1/{path}", content=content, headers=headers, timeout=60)

    def xorb(self, content: bytes | None = None, name: str = NAME) -> int:
        """Send a xorb, by default the one that holds `CONTENT`."""
        return self.post(f"xorbs/default/{name}", xorb(*CHUNKS) if content is None else content).status_code

    def files(self, *files: tuple[str | None, Sequence[Range]]) -> int:
        """Send a list of files."""
        return self.post("shards", file_list(*files)).status_code

    def commit(self, sha256: str = SHA256, size_bytes: int = len(CONTENT)) -> bool:
        """Whether the repo takes a commit of an object."""
        line = '{"key": "lfsFile", "value": {"path": "w", "algo": "sha256", "oid": "%s", "size": %d}}\n'
        answer = httpx2.post(
            f"{self._api.endpoint}/api/models/{self._repo}/commit/main",
            content='{"key": "header", "value": {"summary": "w"}}\n' + line % (sha256, size_bytes),
            headers={"Authorization": f"Bearer {self._api.token}"},
            timeout=60,
        )
        return answer.status_code == 200


@pytest.fixture
def sender(api: HfApi, repo: str) -> Sender:
    """A client at the address of `repo`."""
    return Sender(api, repo)


def test_the_stock_client_uploads_without_a_setting(hub: RunningHub, api: HfApi, repo: str, tmp_path: Path) -> None:
    """A client in an environment without any variable of the Hub's sends its default, Xet, and nothing else."""
    file = tmp_path / "w"
    file.write_bytes(os.urandom(300_000))
    with client(hub.endpoint, str(api.token), repo, file, tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert Path(api.hf_hub_download(repo, "w.safetensors")).read_bytes() == file.read_bytes()
    assert left_over(hub.hub.folder) == []


def test_downloads_stay_plain(api: HfApi, repo: str) -> None:
    """What came over Xet is downloaded as any other file: neither the file nor the listing names a Xet hash."""
    api.upload_file(path_or_fileobj=CONTENT, path_in_repo="w.bin", repo_id=repo)
    headers = {"Authorization": f"Bearer {api.token}"}
    answer = httpx2.head(f"{api.endpoint}/{repo}/resolve/main/w.bin", headers=headers, timeout=60)
    assert answer.headers["X-Linked-Etag"] == f'"{SHA256}"'
    assert not [name for name in answer.headers if "xet" in name.lower()]
    (info,) = api.get_paths_info(repo, ["w.bin"])
    assert info.xet_hash is None


def test_each_repo_has_an_address_of_its_own(api: HfApi, repo: str, hub: RunningHub) -> None:
    """The client names chunks that it sent to the same address before: in another repo it sends them again."""
    content = os.urandom(300_000)
    for name, path in ((repo, "a.bin"), (repo, "renamed.bin"), ("ann/second", "a.bin")):
        api.create_repo(name, exist_ok=True)
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name)
        assert Path(api.hf_hub_download(name, path)).read_bytes() == content
    changed = content[:150_000] + b"!" + content[150_000:]
    api.upload_file(path_or_fileobj=changed, path_in_repo="changed.bin", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "changed.bin")).read_bytes() == changed
    assert left_over(hub.hub.folder) == []
    assert Sender(api, repo).url != Sender(api, "ann/second").url
    assert Sender(api, repo).url == Sender(api, repo).url


def test_a_client_whose_chunks_were_collected_sends_them_again(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    folder = tmp_path / "hub"
    for _ in range(2):
        with running_hub(folder) as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.token("ann"))
            api.create_repo("ann/m", exist_ok=True)
            api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id="ann/m")
            assert Path(api.hf_hub_download("ann/m", "w.bin")).read_bytes() == content
            api.delete_file("w.bin", "ann/m")
            api.super_squash_history("ann/m")
        with LocalHub(folder) as local:
            assert gc.collect_garbage(local, min_age_s=0).num_blobs == 1


def test_an_upload_that_is_killed_goes_on(tmp_path: Path) -> None:
    """The Hub loses neither its memory nor a byte when a client dies in the middle, and the client's next run ends."""
    folder, file = tmp_path / "hub", tmp_path / "w"
    with file.open("wb") as output:
        for _ in range(150):
            output.write(os.urandom(1 << 20))
    token = make_token(folder)
    with hub_process(folder) as (_, endpoint):
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo("ann/m")
        with client(endpoint, token, "ann/m", file, tmp_path) as process:
            wait_until(lambda: any((folder / "xorbs").iterdir()))
            process.kill()
            process.communicate()
        assert not api.file_exists("ann/m", "w.safetensors")
        with client(endpoint, token, "ann/m", file, tmp_path) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors
        path = Path(api.hf_hub_download("ann/m", "w.safetensors"))
        with path.open("rb") as there, file.open("rb") as here:
            assert hashlib.file_digest(there, "sha256").digest() == hashlib.file_digest(here, "sha256").digest()
        # Xorbs of the first run that the second packed in another way stay for a day.
        assert [name for name in left_over(folder) if not re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{64}", name)] == []


def test_memory_stays_flat_while_300_mb_come(tmp_path: Path) -> None:
    folder, file = tmp_path / "hub", tmp_path / "w"
    with file.open("wb") as output:
        for _ in range(300):
            output.write(os.urandom(1 << 20))
    token = make_token(folder)
    with hub_process(folder) as (process, endpoint):
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo("ann/m")
        before = psutil.Process(process.pid).memory_info().rss
        with client(endpoint, token, "ann/m", file, tmp_path) as uploading:
            highest = before
            while uploading.poll() is None:
                highest = max(highest, psutil.Process(process.pid).memory_info().rss)
                with suppress(subprocess.TimeoutExpired):
                    uploading.wait(_LOOK_S)
            assert uploading.returncode == 0
        assert highest - before < 100 << 20
        assert api.get_paths_info("ann/m", ["w.safetensors"])[0].size == 300 << 20
        assert left_over(folder) == []


def test_a_file_may_be_any_ranges_of_xorbs_in_any_order(hub: RunningHub, sender: Sender) -> None:
    """Chunks are taken from a xorb while it is there, and from the blobs that hold them when it is gone."""
    other, turned = "cd" * 32, CHUNKS[2] + CHUNKS[0] + CHUNKS[1]
    assert sender.xorb() == 200
    first = CHUNKS[0] + CHUNKS[1]
    assert sender.files((None, [(NAME, 0, 2, len(first))])) == 200
    assert len(left_over(hub.hub.folder)) == 1
    assert sender.files((None, [(NAME, 2, 3, len(CHUNKS[2]))])) == 200
    assert left_over(hub.hub.folder) == []
    assert sender.xorb(b"not read, as the xorb is known") == 200
    assert sender.xorb(xorb(*CHUNKS), name=other) == 200
    ranges = [(NAME, 2, 3, len(CHUNKS[2])), (other, 0, 1, len(CHUNKS[0])), (NAME, 1, 2, len(CHUNKS[1]))]
    assert sender.files((hashlib.sha256(turned).hexdigest(), ranges), (SHA256, WHOLE), (None, [])) == 200
    for content in (first, CHUNKS[2], turned, CONTENT, b""):
        digest = hashlib.sha256(content).hexdigest()
        assert hub.hub.store.path(digest).read_bytes() == content
        assert sender.commit(digest, len(content))


def test_what_does_not_fit_together_leaves_nothing(hub: RunningHub, sender: Sender) -> None:
    """A list of files that the xorbs do not bear out is refused, and the next try starts at a new address."""
    wrong = hashlib.sha256(b"wrong").hexdigest()
    missing = "ef" * 32
    for files in (
        [(wrong, WHOLE)],
        [(SHA256, WHOLE), (None, [(missing, 0, 1, 1)])],
        [(SHA256, [(NAME, 0, 3, len(CONTENT) - 1)])],
        [(SHA256, [(NAME, 0, 4, len(CONTENT))])],
        [(SHA256, [(NAME, 0, 0xFFFFFFFF, len(CONTENT))])],
    ):
        before = sender.url
        assert sender.xorb() == 200
        assert sender.files(*files) == 400
        assert left_over(hub.hub.folder) == []
        assert list(hub.hub.store.blobs.rglob(SHA256)) == []
        assert not sender.commit()
        assert sender.xorb() == 404
        sender.start()
        assert sender.url != before
    assert sender.xorb() == 200
    assert sender.files((SHA256, WHOLE)) == 200
    assert sender.commit()


def test_a_damaged_xorb_is_refused_and_can_be_sent_again(hub: RunningHub, sender: Sender) -> None:
    whole = xorb(*CHUNKS)
    for damaged in (whole[:-1], b"\1" + whole[1:], b"", iter([whole[:100], whole[100:-1]])):
        assert sender.post(f"xorbs/default/{NAME}", damaged).status_code == 400
        assert left_over(hub.hub.folder) == []
    # A wrong byte in a plain chunk is noticed when the file is rebuilt.
    assert sender.xorb(whole[:-1] + b"!") == 200
    assert sender.files((SHA256, WHOLE)) == 400
    sender.start()
    assert sender.xorb(whole) == 200
    assert sender.files((SHA256, WHOLE)) == 200


def test_a_xorb_that_was_lost_starts_the_upload_again(hub: RunningHub, sender: Sender) -> None:
    """After a loss of power a xorb may be shorter than the database says."""
    assert sender.xorb() == 200
    (file,) = (hub.hub.folder / "xorbs").iterdir()
    os.truncate(file, 10)
    assert sender.files((SHA256, WHOLE)) == 400
    sender.start()
    assert sender.xorb() == 200
    assert sender.files((SHA256, WHOLE)) == 200
    hub.hub.store.path(SHA256).unlink()
    assert sender.files((SHA256, WHOLE)) == 400
    sender.start()
    assert sender.xorb() == 200


def test_sizes_have_limits(hub: RunningHub, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list can name one chunk a thousand times: the file's size is checked before a byte is written."""
    assert sender.xorb() == 200
    part = (NAME, 0, 3, len(CONTENT))
    with monkeypatch.context() as patch:
        patch.setattr("shardhub.localhub.store.RESERVE_BYTES", 1 << 60)
        assert sender.files((SHA256, WHOLE)) == 507
        assert sender.xorb(name="cd" * 32) == 507
    assert sender.files((SHA256, WHOLE)) == 200
    with monkeypatch.context() as patch:
        patch.setattr("shardhub.localhub.routes.xet.MAX_FILE_BYTES", 1000 * len(CONTENT))
        assert sender.files((None, [part] * 1001)) == 413
    sender.start()
    with monkeypatch.context() as patch:
        patch.setattr("shardhub.localhub.routes.xet._MAX_BODY_BYTES", 1000)
        assert sender.xorb() == 413
        assert sender.post(f"xorbs/default/{NAME}", iter([xorb(*CHUNKS)])).status_code == 413
        patch.setattr("shardhub.localhub.routes.xet.MAX_LIST_BYTES", 100)
        assert sender.files((SHA256, WHOLE)) == 413
    assert left_over(hub.hub.folder) == []


def test_a_list_repeats_chunks_only_so_often(hub: RunningHub, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small list cannot fill the disk: what it makes is bounded by the chunks it names, each counted once."""
    monkeypatch.setattr("shardhub.localhub.xet.xorbs.MAX_REPEATED_BYTES", 2 * len(CONTENT))
    part, first = WHOLE[0], (NAME, 0, 1, len(CHUNKS[0]))
    others = [[part] * 5, [first, part] * 5]
    for refused in ([(None, [part] * 17)], [(None, [part] * 7), *((None, ranges) for ranges in others)]):
        assert sender.xorb() == 200
        answer = sender.post("shards", file_list(*refused))
        assert (answer.status_code, "HF_HUB_DISABLE_XET=1" in answer.text) == (413, True)
        assert left_over(hub.hub.folder) == []
        sender.start()
    assert sender.xorb() == 200
    assert sender.files((None, [part] * 16), *[(None, [part] * 16)] * 20) == 200
    assert sender.xorb() == 200
    assert sender.files((None, [first] * 3)) == 200
    assert hub.hub.store.size_bytes(hashlib.sha256(CONTENT * 16).hexdigest()) == 16 * len(CONTENT)


def test_equal_contents_are_written_once(hub: RunningHub, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five thousand empty files are one blob, and one wait for the disk; what is there already needs none."""
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), real(handle))[1])
    assert sender.files(*[(None, [])] * 5000) == 200
    num_synced = len(synced)
    assert num_synced <= 3  # the file, its folder, and the folder of folders
    assert sender.files((None, []), (hashlib.sha256(b"").hexdigest(), [])) == 200
    assert len(synced) == num_synced
    assert sender.commit(hashlib.sha256(b"").hexdigest(), 0)
    assert sender.files((None, []), (SHA256, [])) == 400
    assert left_over(hub.hub.folder) == []


def test_an_address_needs_its_token(
    hub: RunningHub, api: HfApi, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo("ann/other")
    other = Sender(api, "ann/other")
    expires, _, signature = sender.token.partition(".")
    for token in ("x", str(api.token), other.token, f"9{expires}.{signature}", expires, f"{expires}.x"):
        for path in (f"xorbs/default/{NAME}", "shards"):
            assert sender.post(path, b"", token).status_code == 401, token
    assert httpx2.get(f"{sender.url}/v1/chunks/default/{NAME}", timeout=60).status_code == 401
    headers = {"Authorization": f"Bearer {sender.token}"}
    assert httpx2.get(f"{sender.url}/v1/chunks/default/{NAME}", headers=headers, timeout=60).status_code == 404
    monkeypatch.setattr("shardhub.localhub.signing._TOKEN_LIFETIME_S", -1.0)
    sender.start()
    assert sender.xorb() == 401


def test_only_a_writer_gets_an_address(hub: RunningHub, repo: str) -> None:
    for token, status in ((None, 404), (hub.token("ann", role="read"), 403), (hub.token("bob"), 404)):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"{hub.endpoint}/api/models/{repo}/xet-write-token/main"
        assert httpx2.get(url, headers=headers, timeout=60).status_code == status


def test_knowing_a_digest_or_a_xorb_gives_no_right_to_its_bytes(hub: RunningHub, sender: Sender) -> None:
    assert sender.xorb() == 200
    assert sender.files((SHA256, WHOLE)) == 200
    bob = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
    bob.create_repo("bob/m")
    thief = Sender(bob, "bob/m")
    assert thief.files((SHA256, WHOLE)) == 400
    assert not thief.commit()


def test_an_address_dies_with_its_repo(api: HfApi, repo: str, sender: Sender) -> None:
    assert sender.xorb() == 200
    api.delete_repo(repo)
    assert sender.files((SHA256, WHOLE)) == 404
    assert sender.xorb() == 404
    with pytest.raises(HfHubHTTPError):
        api.model_info(repo)


def test_a_hub_of_format_1_takes_xet(tmp_path: Path) -> None:
    """A Hub made before Xet uploads gets their tables when it is opened, and keeps what it has."""
    folder = tmp_path / "hub"
    with LocalHub(folder) as local:
        token = local.token("ann")
        with local.catalog.writing() as connection:
            for table in ("xorb_places", "xorbs", "xet_addresses"):
                connection.execute(f"DROP TABLE {table}")
            connection.execute("PRAGMA user_version = 1")
        secret = local.catalog.secret()
    with running_hub(folder) as hub:
        assert hub.hub.catalog.secret() == secret
        api = HfApi(endpoint=hub.endpoint, token=token)
        api.create_repo("ann/m")
        api.upload_file(path_or_fileobj=CONTENT, path_in_repo="w.bin", repo_id="ann/m")


def test_abandoned_xorbs_are_swept(hub: RunningHub, sender: Sender) -> None:
    assert sender.xorb() == 200
    sender.start()
    (file,) = (hub.hub.folder / "xorbs").iterdir()
    os.utime(file, (0, 0))
    sender.start()
    assert left_over(hub.hub.folder) == []
    assert sender.files((SHA256, WHOLE)) == 400
