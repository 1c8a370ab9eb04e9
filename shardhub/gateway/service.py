"""One chain of a gateway, as the routes use it: the head, the model's formats and admission."""

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
from shardhub.gateway.schema import Body
from shardhub.gateway.segmenters import Segmenters
from shardhub.gateway.settings import GatewaySettings
from shardhub.gateway.structured import Structured
from shardhub.gateway.thinking import Thinking, find_thinking
from shardhub.gateway.toolcalls import find_call_formats
from shardhub.gateway.uses import Uses

T = TypeVar("T")

# nginx's status for a client that disconnected; no client receives it.
CLIENT_GONE = 499
# As a model name: every name that a client asks for is this model's.
ANY_MODEL = "*"
_MAX_NAME_CHARS = 256
# Separate threads, so that prompts waiting for the tokenizer do not delay the drawing of tokens.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="shardhub-text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The fields common to all parts of one answer."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str

    def around(self, **parts: Any) -> dict[str, Any]:
        """An answer, or a part of one, as JSON-serialisable data."""
        fields = {name: getattr(self, name) for name in Envelope.__slots__}
        return fields | parts


class Service(StreamObserver):
    """A head and the state that the routes share.

    Args:
        head: A connected head.
        settings: The gateway's settings.
        names: The model's names for clients, of which the first is reported; empty is the pipeline's own.
        chain: A name that tells the chain from the others of its model, for metrics and the page.
        order: The chain's place among all; models are listed in this order.

    Attributes:
        model_names: The model's names for clients.
        uses: The requests that were given to the chain.
        num_drawn: Number of tokens drawn so far.
        rate: Tokens drawn per second.
        segmenters: Make the segmenters that cut answers into reasoning, text and calls.
        vocab_size: Exclusive upper bound of the ids of prompts and biases.
        infill: The model's fill-in-the-middle format; None if it has none.
        call_formats: The formats in which the model writes tool calls.
    """

    def __init__(
        self, head: Head, settings: GatewaySettings, *, names: Sequence[str] = (), chain: str = "0", order: int = 0
    ) -> None:
        self.head = head
        self.settings = settings
        self.chain = chain
        self.order = order
        self.uses = Uses()
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
        self.model_names = tuple(names) or (manifest.name,)
        self.fingerprint = f"fp_{manifest.pipeline_id[:12]}"

    def drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        """Count drawn tokens."""
        self.num_drawn += num_tokens
        self.rate.add(num_tokens)

    @property
    def thinking(self) -> Thinking:
        """The model's switches for thinking. Found on first use, which takes a fraction of a second."""
        with self._trying:
            if self._thinking is None:
                self._thinking = find_thinking(self.head.tokenizer, self.segmenters.reasoning)
            return self._thinking

    @property
    def max_context(self) -> int:
        """Maximum number of positions of a prompt and its answer together."""
        return self.head.capacity.max_context

    @classmethod
    async def start(
        cls, head: Head, settings: GatewaySettings, *, names: Sequence[str] = (), chain: str = "0", order: int = 0
    ) -> Service:
        """Make a service and start its tokenizer in threads, as finding the model's call formats takes time."""
        service = await in_thread(lambda: cls(head, settings, names=names, chain=chain, order=order))
        await in_thread(head.tokenizer.start)
        return service

    def close(self) -> None:
        """End the processes of the structured answers; the caller stops the head."""
        self.structured.close()

    @property
    def num_running(self) -> int:
        """Number of answers that run, wait or are about to begin."""
        return max(self.uses.num, self.admission.num)

    @property
    def is_full(self) -> bool:
        """Whether another request would wait for a session."""
        return self.num_running >= self.head.capacity.max_sessions

    def reported_name(self, asked: str | None) -> str:
        """The model's name to report to a client: the one that it asked for."""
        return self.model_names[0] if asked is None else asked[:_MAX_NAME_CHARS]

    def envelope(self, model: str | None, kind: str, prefix: str) -> Envelope:
        """Make the envelope of an answer to a request for a model."""
        return Envelope(
            id=f"{prefix}-{secrets.token_hex(12)}",
            object=kind,
            created=int(time.time()),
            model=self.reported_name(model),
            system_fingerprint=self.fingerprint,
        )

    def check_ids(self, prompt: Sequence[int], *, param: str) -> None:
        """Check that the model has a row for each token of a prompt: the tokenizer of a fine-tuned model may know more.

        Raises:
            Refusal: The model has no row for a token.
        """
        if max(prompt, default=0) < self.vocab_size:
            return
        beyond = next(token for token in prompt if token >= self.vocab_size)
        text = self.head.tokenizer.token_bytes(beyond).decode("utf-8", "replace")
        raise Refusal(
            400,
            f"The prompt holds the token {text!r} ({beyond}), which the tokenizer has but the model does not: its ids "
            f"are 0 to {self.vocab_size - 1}.",
            param=param,
            code="invalid_value",
        )

    def max_tokens(
        self, requested: int | None, prompts: Sequence[Sequence[int]], *, param: str, limit_param: str = "max_tokens"
    ) -> int:
        """Maximum number of tokens of each answer: the requested limit, at most the rest of the context.

        Args:
            requested: The requested limit; None or -1 for no limit.
            param: The field that holds the prompts.
            limit_param: The field that names the limit.

        Raises:
            Refusal: A prompt leaves no room, or the answer does not fit and `strict_limits` is set.
        """
        longest = max(len(prompt) for prompt in prompts)
        left = self.max_context - longest
        if left < 1:
            raise Overflow(num_prompt=longest, max_context=self.max_context, param=param)
        if requested is None or requested < 0:
            return left if self.settings.max_tokens is None else min(self.settings.max_tokens, left)
        if requested > left and self.settings.strict_limits:
            raise Overflow(num_prompt=longest, max_context=self.max_context, num_asked=requested, param=limit_param)
        return min(requested, left)


def cut_remark(requested: int | None, left: int, *, param: str) -> str:
    """The remark for a client whose limit was cut to the rest of the context; empty if it was not cut."""
    return (
        f"{param} was reduced from {requested} to {left}, the room left in the context"
        if (requested or 0) > left
        else ""
    )


def tenant_of(request: Request) -> str:
    """The tenant of a request: the digest of its key."""
    return str(request.scope.get("state", {}).get("key", ""))


def warnings_of(body: Body, left_out: Sequence[str] = (), *, remarks: Sequence[str] = ()) -> dict[str, str]:
    """The warning header, which names the fields without effect at every depth.

    Args:
        left_out: Further fields that were ignored.
        remarks: Further remarks for the client.
    """
    header = header_of(chain(left_out, ignored_fields(body)))
    texts = [*([] if header is None else [header]), *remarks]
    return {"X-Shardhub-Warning": "; ".join(texts)} if texts else {}


async def in_thread(work: Callable[[], T]) -> T:
    """Run slow work in a thread beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work unless its client disconnects.

    Raises:
        Refusal: The client disconnected, and the work was cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(CLIENT_GONE, "The client closed the connection.")
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
