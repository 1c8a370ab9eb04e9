"""Pushes that are killed, raced, throttled or given wrong answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse, JSONResponse

from shardhub.errors import AccessError, Conflict, HubRefused, HubUnreachable, WeightFileError
from shardhub.hub.publish import publish
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.localhub.server import RunningHub
from tests.checkpoints import write_checkpoint
from tests.hub.pushing import OVER_LFS, Pusher, Wire, pushing_hub

pytestmark = OVER_LFS

ROWS = 4096


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def wire(served: tuple[RunningHub, Wire]) -> Wire:
    return served[1]


@pytest.fixture
def ann(served: tuple[RunningHub, Wire], tmp_path: Path) -> Pusher:
    return Pusher(served[0], tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", 8, rows=ROWS, tied=False)
    return tmp_path / "model"


# Pushes as `Pusher.push` does, in a process of its own.
PUSH = """
import sys
from pathlib import Path
from huggingface_hub import constants
constants.HF_HUB_DISABLE_XET = True
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from tests.hub.pushing import Pusher
endpoint, token, cache, model = sys.argv[1:]
pusher = object.__new__(Pusher)
pusher.user, pusher.cache = "ann", Path(cache)
pusher.calls = HubCalls(api=hub_api(endpoint, token))
pusher.push(Path(model), [4])
"""


@pytest.mark.parametrize(
    ("method", "part", "number"),
    [("PUT", "/_lfs/", 3), ("POST", "/commit/", 1), ("POST", "/commit/", 2), ("POST", "/repos/create", 3)],
    ids=["upload", "first-shard", "second-shard", "manifest-repo"],
)
def test_push_is_finished_after_a_kill(
    ann: Pusher, model: Path, wire: Wire, method: str, part: str, number: int
) -> None:
    """After kill -9 at any point no pipeline is visible, and the next run finishes without sending a byte twice."""
    wire.kill_at(method, part, number, PUSH, ann.api.endpoint, ann.token, str(ann.cache), str(model))
    before = wire.put_bytes
    pipelines = [info.id for info in ann.api.list_models(author="ann", filter="shardhub-pipeline")]
    assert pipelines == []
    total = sum(shard.size_bytes for shard in ann.job(model, [4]).shards)

    wire.after = lambda method, path: None
    done = ann.push(model, [4])
    assert before > 0
    assert wire.put_bytes <= total + max(layout.size_bytes for layout in ann.job(model, [4]).shards[0].layouts)
    if method == "POST":
        assert wire.put_bytes == total
    assert done.pipeline.action is Action.CREATE
    assert not list(ann.cache.glob("making-*"))
    assert len(list(ann.api.list_repo_commits("ann/m-shard-0"))) == 2
    wire.reset()
    ann.push(model, [4])
    assert {method for method, _ in wire.calls} == {"GET"}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("POST", "/repos/create"),
        ("POST", "/validate-yaml"),
        ("POST", "/commit/"),
        ("GET", "/api/models/ann/m-shard-0"),
        ("POST", "/lfs-files/duplicate"),
    ],
)
def test_push_waits_as_long_as_the_hub_asks(
    ann: Pusher, model: Path, wire: Wire, method: str, part: str, status: int
) -> None:
    """Calls that the client itself does not retry are repeated after Retry-After."""
    if "duplicate" in part:
        ann.push(model, [4], name="first")
        wire.reset()
    wire.fault(
        method,
        part,
        lambda number: JSONResponse({"error": "slow down"}, status, {"Retry-After": "7"}) if number <= 2 else None,
    )
    done = ann.push(model, [4])
    assert done.pipeline.action is Action.CREATE
    assert len(ann.waits) == 2
    assert all(7 <= wait <= 8 for wait in ann.waits)


def test_push_gives_up_on_a_hub_that_stays_busy(ann: Pusher, model: Path, wire: Wire) -> None:
    wire.fault("POST", "/commit/", lambda _: JSONResponse({"error": "busy"}, 503))
    with pytest.raises(HubUnreachable, match="too busy"):
        ann.push(model, [4])
    assert len(ann.waits) == 4


def test_commit_whose_answer_was_lost_is_found(ann: Pusher, model: Path, wire: Wire) -> None:
    """If the Hub makes a commit but answers 502, the commit is recognised and not made twice."""
    state = {"committed": False}
    app = wire.app
    assert app is not None

    async def lossy(scope, receive, send) -> None:
        if scope["method"] == "POST" and "m-shard-0/commit/" in scope["path"] and not state["committed"]:
            state["committed"] = True

            async def swallow(message) -> None:
                pass

            await app(scope, receive, swallow)
            await JSONResponse({"error": "gateway"}, 502)(scope, receive, send)
            return
        await app(scope, receive, send)

    wire.app = lossy
    done = ann.push(model, [4])
    assert state["committed"]
    commits = [commit.commit_id for commit in ann.api.list_repo_commits("ann/m-shard-0")]
    assert commits[0] == done.shards[0].commit
    assert len(commits) == 2


def test_of_two_pushers_the_later_is_told_to_run_again(
    served: tuple[RunningHub, Wire], ann: Pusher, model: Path, tmp_path: Path
) -> None:
    """Of two pushers with the same view of the Hub, the later one changes nothing and is told to run again."""
    write_checkpoint(tmp_path / "second", 8, rows=ROWS, tied=False, seed=1)
    other = Pusher(served[0], tmp_path / "other-cache")
    other.push(model, [4])
    plan = ann.plan(ann.job(tmp_path / "second", [4]))
    assert {at.action for at in plan.shards} == {Action.UPDATE}
    write_checkpoint(tmp_path / "third", 8, rows=ROWS, tied=False, seed=2)
    theirs = other.push(tmp_path / "third", [4])
    with pytest.raises(Conflict, match="ann/m-shard-0 was changed during this push") as refused:
        publish(plan, ann.calls, PushJournal(ann.cache), ann.cache)
    assert "Run the same command again" in refused.value.hint
    assert ann.api.model_info("ann/m-shard-0").sha == theirs.shards[0].commit
    again = ann.push(tmp_path / "second", [4])
    assert again.pipeline.action is Action.UPDATE


def test_of_two_pushers_of_a_new_name_one_gives_way(
    served: tuple[RunningHub, Wire], ann: Pusher, model: Path, tmp_path: Path
) -> None:
    plan = ann.plan(ann.job(model, [4]))
    Pusher(served[0], tmp_path / "other-cache").push(model, [4])
    with pytest.raises(Conflict, match="changed during this push"):
        publish(plan, ann.calls, PushJournal(ann.cache), ann.cache)
    done = ann.push(model, [4])
    assert {repo.action for repo in (*done.shards, done.pipeline)} == {Action.KEEP}


@pytest.mark.parametrize("part", ["/repos/create", "/validate-yaml", "/commit/"])
def test_page_of_a_captive_portal_is_not_taken_for_a_hub(ann: Pusher, model: Path, wire: Wire, part: str) -> None:
    """HTML with status 200 in the place of JSON gives a readable error without a traceback."""
    wire.fault("POST", part, lambda _: HTMLResponse("<html>please log in</html>"))
    with pytest.raises(HubUnreachable, match="not a Hub"):
        ann.push(model, [4])


def test_card_the_hub_does_not_take_is_an_error_of_ours(ann: Pusher, model: Path, wire: Wire) -> None:
    answer = {"errors": [{"message": "license must be one of ..."}], "warnings": []}
    wire.fault("POST", "/validate-yaml", lambda _: JSONResponse(answer, 400))
    with pytest.raises(HubRefused) as refused:
        ann.push(model, [4])
    assert "license must be one of" in refused.value.why


def test_refused_upload_says_why(ann: Pusher, model: Path, wire: Wire) -> None:
    """An error that the client wraps in a general one is reported by its cause."""
    wire.fault("PUT", "/_lfs/", lambda _: JSONResponse({"error": "no"}, 403, {"X-Error-Message": "quota"}))
    with pytest.raises(AccessError) as refused:
        ann.push(model, [4])
    assert "quota" in refused.value.why
    assert not list(ann.cache.glob("making-*"))


def test_journal_survives_half_a_line(tmp_path: Path) -> None:
    """A half-written line of the journal is skipped, and the next line starts afresh."""
    journal = PushJournal(tmp_path)
    journal.add("a", "1" * 64)
    with (tmp_path / "push.journal").open("ab") as file:
        file.write(b'{"key": "b", "sha')
    PushJournal(tmp_path).add("c", "2" * 64)
    assert PushJournal(tmp_path).digests == {"a": "1" * 64, "c": "2" * 64}


def test_source_that_changed_unseen_is_refused(ann: Pusher, model: Path) -> None:
    """Changed bytes with unchanged size and time are refused, so that no push mixes them with an earlier run's."""
    job = ann.job(model, [4])
    PushJournal(ann.cache).add(job.shards[0].keys[0], "0" * 64)
    with pytest.raises(WeightFileError, match="changed since an earlier run"):
        ann.push(model, [4])
    assert not ann.api.repo_exists("ann/m-pipeline")
