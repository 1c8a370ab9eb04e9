"""What the routes of a gateway share: the head, the model's ways, and who is let in."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from starlette.requests import Request

from shardhub.chain.head import Head
from shardhub.chain.metrics import HeadMetrics
from shardhub.chain.observers import StreamObserver
from shardhub.chain.stream import Stream
from shardhub.gateway.admission import Admission
from shardhub.gateway.defaults import read_defaults
from shardhub.gateway.ignored import header_of, ignored_fields
from shardhub.gateway.infill import find_infill
from shardhub.gateway.rate import Rate
from shardhub.gateway.refusals import Overflow, Refusal
from shardhub.gateway.response_store import ResponseStore
from shardhub.gateway.schema import Body
from shardhub.gateway.segmenters import Segmenters
from shardhub.gateway.settings import GatewaySettings
from shardhub.gateway.structured import Structured
from shardhub.gateway.thinking import Thinking, find_thinking
from shardhub.gateway.toolcalls import find_call_formats

T = TypeVar("T")

# nginx's code for a client that went away; nobody reads it.
CLIENT_GONE = 499
# Among the names of a model: whatever a client asks for is this one.
ANY_MODEL = "*"
_MAX_NAME_CHARS = 256
# Of their own: however many prompts wait for the tokenizer, what draws tokens does not wait with them.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="shardhub-text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What stands around all parts of one answer."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    def around(self, **parts: Any) -> dict[str, Any]:
        """An answer, or a part of one, as JSON-able data."""
        fields = {name: getattr(self, name) for name in Envelope.__slots__}
        return fields | parts


class Service(StreamObserver):
    """A head behind an API.

    Args:
        head: Connected.
        settings: How it is to serve.

    Attributes:
        num_drawn: Tokens drawn so far.
        rate: How many of them a second.
        segmenters: What cuts answers into reasoning, text and calls.
        vocab_size: Ids of prompts and biases are below it.
        infill: How the model is asked for the text between two others; None if it knows no such thing.
        call_formats: How the model writes calls of tools.
        answers: Those of the Responses API that are kept.
    """

    def __init__(self, head: Head, settings: GatewaySettings) -> None:
        self.head = head
        self.settings = settings
        self.created = int(time.time())
        self.defaults = read_defaults(head.pipeline.documents)
        self.metrics = HeadMetrics(head.scheduler)
        self.num_drawn = 0
        self.rate = Rate()
        head.scheduler.watch(self)
        self.structured = Structured(head.tokenizer)
        self.segmenters = Segmenters(head.tokenizer)
        self._trying = threading.Lock()
        self._thinking: Thinking | None = None
        self.infill = find_infill(head.tokenizer)
        self.call_formats = find_call_formats(head.tokenizer)
        self.admission = Admission(head.capacity.max_sessions + settings.max_queue)
        self.vocab_size = head.vocab_size
        manifest = head.pipeline.manifest
        self.model_names = names_of(settings, head)
        self.answers = ResponseStore()
        self.fingerprint = f"fp_{manifest.pipeline_id[:12]}"

    def drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        """Count tokens that were drawn."""
        self.num_drawn += num_tokens
        self.rate.add(num_tokens)

    @property
    def thinking(self) -> Thinking:
        """How the model is told to think or not; found out when it is first asked, which takes a part of a second."""
        with self._trying:
            if self._thinking is None:
                self._thinking = find_thinking(self.head.tokenizer, self.segmenters.reasoning)
            return self._thinking

    @property
    def max_context(self) -> int:
        """Positions of a prompt and its answer."""
        return self.head.capacity.max_context

    def check_model(self, name: str | None) -> str:
        """The model's name as it is told to clients: the one they asked for.

        Raises:
            Refusal: Another model was asked for; nothing is ever fetched for a client.
        """
        if name is None:
            return self.model_names[0]
        if name not in self.model_names and ANY_MODEL not in self.settings.model_names:
            raise Refusal(
                404,
                f"The model {name[:200]!r} does not exist here; this gateway serves {self.model_names[0]!r}.",
                param="model",
                code="model_not_found",
            )
        return name[:_MAX_NAME_CHARS]

    def envelope(self, model: str | None, kind: str, prefix: str) -> Envelope:
        """What stands around the parts of an answer.

        Raises:
            Refusal: As `check_model`.
        """
        return Envelope(
            id=f"{prefix}-{secrets.token_hex(12)}",
            object=kind,
            created=int(time.time()),
            model=self.check_model(model),
            system_fingerprint=self.fingerprint,
        )

    def check_ids(self, prompt: Sequence[int], *, param: str) -> None:
        """Check that the model has a row for each token of a prompt; tokenizers of fine-tuned models may know more.

        Raises:
            Refusal: It has none for one.
        """
        if max(prompt, default=0) < self.vocab_size:
            return
        beyond = next(token for token in prompt if token >= self.vocab_size)
        text = self.head.tokenizer.token_bytes(beyond).decode("utf-8", "replace")
        raise Refusal(
            400,
            f"The prompt holds the token {text!r} ({beyond}), which the tokenizer knows and the model does not: "
            f"its ids are 0 to {self.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )

    def max_tokens(
        self, asked: int | None, prompts: Sequence[Sequence[int]], *, param: str, limit_param: str = "max_tokens"
    ) -> int:
        """Most tokens of each answer: what was asked for, as far as the context leaves room; the rest of it else.

        Args:
            asked: None or -1 where a request names no limit.
            param: The field that holds the prompts.
            limit_param: The field that names the limit.

        Raises:
            Refusal: A prompt leaves no room; or the answer does not fit, where limits are strict.
        """
        longest = max(len(prompt) for prompt in prompts)
        left = self.max_context - longest
        if left < 1:
            raise Overflow(num_prompt=longest, max_context=self.max_context, param=param)
        if asked is None or asked < 0:
            return left if self.settings.max_tokens is None else min(self.settings.max_tokens, left)
        if asked > left and self.settings.strict_limits:
            raise Overflow(num_prompt=longest, max_context=self.max_context, num_asked=asked, param=limit_param)
        return min(asked, left)


def names_of(settings: GatewaySettings, head: Head) -> tuple[str, ...]:
    """The names of the model that clients are told."""
    return tuple(name for name in settings.model_names if name != ANY_MODEL) or (head.pipeline.manifest.name,)


def cut_remark(asked: int | None, left: int, *, param: str) -> str:
    """What a client is told whose limit was cut to what the context leaves; empty where it was not."""
    return f"{param} was cut from {asked} to {left}, all that the context leaves" if (asked or 0) > left else ""


def service_of(request: Request) -> Service:
    """The service a request came to."""
    found: Service = request.app.state.service
    return found


def tenant_of(request: Request) -> str:
    """Whose request it is: the digest of its key."""
    return str(request.scope.get("state", {}).get("key", ""))


def warnings_of(body: Body, left_out: Sequence[str] = (), *, remarks: Sequence[str] = ()) -> dict[str, str]:
    """A header that names the fields without effect, at every depth.

    Args:
        left_out: More that was ignored.
        remarks: What else a client should know.
    """
    header = header_of(chain(left_out, ignored_fields(body)))
    texts = [*([] if header is None else [header]), *remarks]
    return {"X-Shardhub-Warning": "; ".join(texts)} if texts else {}


async def in_thread(work: Callable[[], T]) -> T:
    """Run what takes its time beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work as long as its client does.

    Raises:
        Refusal: The client went away; the work was cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(CLIENT_GONE, "The client went away.")
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
