"""A Hub that counts requests and misbehaves on demand, and pushes of generated checkpoints to it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from shardhub.hub.publish import Published, publish
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import PushPlan, plan_push
from shardhub.localhub import server
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.manifest import Source, sha256_hex
from shardhub.naming import PICTURE_FILE
from shardhub.resources import resource
from shardhub.splitting.job import SplitJob, prepare
from tests.checkpoints import FOLDER, contents_of, stages_of

# huggingface_hub 2.4.0 sends LFS bytes in a way httpx2 warns about.
OVER_LFS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# sha256 of the picture, as in the paths of its uploads.
PICTURE = sha256_hex((resource("templates") / PICTURE_FILE).read_bytes())

# What a fault does with a request, told by its number of those that matched, from 1: an answer, or None to let it by.
Answer = Callable[[int], Response | None]


@dataclass
class Wire:
    """A layer in front of a Hub that counts requests, and answers in the Hub's place where a fault is set.

    Attributes:
        calls: Method and path of every request.
        put_bytes: Bytes of all uploads but of the picture on a pipeline's card.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    put_bytes: int = 0
    app: ASGIApp | None = None
    _faults: list[tuple[str, str, Answer, list[int]]] = field(default_factory=list)
    after: Callable[[str, str], None] = lambda method, path: None

    def fault(self, method: str, part: str, answer: Answer) -> None:
        """Answer requests with this method whose path contains this part."""
        self._faults.append((method, part, answer, [0]))

    def count(self, method: str, part: str) -> int:
        """The number of requests so far."""
        return sum(called == method and part in path for called, path in self.calls)

    def reset(self) -> None:
        """Reset the count and the faults."""
        self.calls.clear()
        self.put_bytes = 0
        self._faults.clear()
        self.after = lambda method, path: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        method, path = scope["method"], scope["path"]
        self.calls.append((method, path))

        async def counted() -> Message:
            message = await receive()
            if method == "PUT" and PICTURE not in path:
                self.put_bytes += len(message.get("body", b""))
            return message

        for faulty, part, answer, seen in self._faults:
            if faulty == method and part in path:
                seen[0] += 1
                if (response := answer(seen[0])) is not None:
                    while (await receive()).get("more_body"):
                        pass
                    await response(scope, receive, send)
                    return
        await self.app(scope, counted, send)
        self.after(method, path)

    def kill_at(self, method: str, part: str, number: int, program: str, *arguments: str) -> None:
        """Run a Python program, and kill it once so many requests of a method and path have been answered."""
        num_seen = itertools.count(1)

        def after(done_method: str, done_path: str) -> None:
            if done_method == method and part in done_path and next(num_seen) == number:
                running.kill()

        self.after = after
        running = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, *arguments])
        assert running.wait() == -signal.SIGKILL


@contextmanager
def pushing_hub(folder: Path) -> Iterator[tuple[RunningHub, Wire]]:
    """Serve a Hub behind a `Wire`, with the client uploading over LFS."""
    wire, patch = Wire(), pytest.MonkeyPatch()
    build = server.build_app

    def wired(*args, **options) -> ASGIApp:
        wire.app = build(*args, **options)
        return wire

    patch.setattr(server, "build_app", wired)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    patch.delenv("HF_TOKEN", raising=False)
    # Power cuts are the Hub's own tests' matter; here every byte would wait for the disk.
    patch.setattr(os, "fsync", lambda _: None)
    disable_progress_bars()
    try:
        with running_hub(folder) as running:
            yield running, wire
    finally:
        patch.undo()
        enable_progress_bars()
        huggingface_hub.close_session()


class Pusher:
    """A user who pushes, with a token and a cache folder of their own.

    Attributes:
        waits: Seconds of all waits, which are not made.
    """

    def __init__(self, hub: RunningHub, cache: Path, user: str = "ann", role: str = "write") -> None:
        self.waits: list[float] = []
        self.user = user
        self.cache = cache
        self.token = hub.token(user, role=role)
        self.calls = HubCalls(api=hub_api(hub.endpoint, self.token), sleep=self.waits.append)
        self.api = self.calls.api

    def job(self, model: Path, cuts: Sequence[int], *, name: str = "m", source: Source = FOLDER, **more) -> SplitJob:
        """The job of a push of a model folder with these cuts."""
        checkpoint = open_checkpoint(model)
        return prepare(
            checkpoint,
            contents_of(checkpoint),
            stages_of(checkpoint, cuts),
            self.cache / "nowhere",
            name=name,
            source=source,
            namespace=self.user,
            **more,
        )

    def plan(self, job: SplitJob, **options) -> PushPlan:
        return plan_push(job, self.calls, PushJournal(self.cache), **options)

    def push(
        self, model: Path, cuts: Sequence[int], *, name: str = "m", source: Source = FOLDER, **options
    ) -> Published:
        """Plan and publish."""
        journal = PushJournal(self.cache)
        seen = plan_push(self.job(model, cuts, name=name, source=source), self.calls, journal, **options)
        return publish(seen, self.calls, journal, self.cache)
