"""Structured answers, which follow a JSON schema, an expression or a list of choices, by llguidance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shardhub.errors import PromptError
from shardhub.gateway.blanks import MAX_BLANKS, Blanks, blanks_of
from shardhub.gateway.closed import closed
from shardhub.gateway.dialects import plain_schema
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.shapes import Shape
from shardhub.text.panics import panics_as_errors
from shardhub.text.sandbox import Program, Sandboxes
from shardhub.text.tokenizer import Tokenizer

# Characters of a schema or an expression, and choices in a list. The tools of a coding agent have 100,000 characters.
MAX_SOURCE_CHARS = 1 << 18
MAX_CHOICES = 4096
# Schemas that are compiled concurrently. Only other schemas wait for them.
_AT_ONCE = 2
# Maximum time a client waits for its grammar. Compiling rarely takes seconds, but other schemas may come first.
_WAIT_S = 30.0
# The worker's CPU time: schemas of 64 KB compile in milliseconds, the slowest legitimate ones seen in a second.
COMPILE_S = 2.0
_COMPILING = Program(
    module="shardhub.gateway.grammar_worker",
    packages=("shardhub", "llguidance"),
    subject="The grammar",
    cpu_s=COMPILE_S,
    hint="Check that llguidance is installed.",
)
# llguidance's messages in words for the author of the schema.
_REASONS = (
    ("NoExtensionBias", "no answer can fit: the schema refers to itself without end, or its parts exclude each other"),
    ("not JSON serializable", "a number in the schema does not fit in 64 bits"),
    ("recursion limit", "the schema nests too deeply"),
    ("maximum recursion depth", "the schema nests too deeply"),
    ("oneOf constraints", "the options of a oneOf must exclude each other in type or in a constant; use anyOf"),
    ("look-around", "expressions with lookahead or lookbehind are not supported"),
    ("lookarounds", "expressions with lookahead or lookbehind are not supported"),
    ("backreferences", "expressions with backreferences are not supported"),
    ("not present in a registry", "schemas are not fetched from elsewhere; put the schema referred to under $defs"),
    ("Expecting object schema", "a schema is an object"),
)
_UNKNOWN_KEYWORDS = re.compile(r"Unimplemented keys: \[(.*?)\]")
# A grammar is little more than its schema or expression; an escaped character may take six bytes, escaped twice.
_MAX_ANSWER_BYTES = 64 * MAX_SOURCE_CHARS


class Structured:
    """Compiles shapes for one model.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._compiled_for: Any = None
        self._blanks: Blanks | None = None
        # Separate threads, so that waiting for a schema does not delay rendering, tokenizing or drawing.
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shardhub-grammar")
        self._sandboxes = Sandboxes(_COMPILING, _AT_ONCE)

    def close(self) -> None:
        """End the compiling processes. No grammar can be made afterwards."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandboxes.close()

    async def grammar(self, shape: Shape) -> LlGrammar:
        """Make a grammar for one answer.

        Raises:
            Refusal: The shape is malformed, too large, or takes too long to compile, or llguidance is not installed.
        """
        text = shape.source if isinstance(shape.source, str) else _dumped(shape)
        if len(text) > MAX_SOURCE_CHARS or (shape.kind == "choice" and len(shape.source) > MAX_CHOICES):
            raise Refusal(400, f"{shape.param} is too large.", param=shape.param, code="schema_too_large")
        if shape.kind == "choice" and not all(shape.source or [""]):
            raise Refusal(
                400, f"{shape.param} needs at least one choice, and choices must not be empty.", param=shape.param
            )
        loop = asyncio.get_running_loop()
        try:
            # A waiting schema is dropped when its client leaves; one that is being compiled ends by itself.
            async with asyncio.timeout(_WAIT_S):
                return await loop.run_in_executor(self._threads, self._compile, shape)
        except TimeoutError as error:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise Refusal(
                503,
                f"{shape.param} was not compiled within {_WAIT_S:.0f} s: the gateway is busy with other schemas.",
                param=shape.param,
                headers=retry,
            ) from error

    def _compile(self, shape: Shape) -> LlGrammar:
        try:
            from shardhub.gateway.grammar_worker import compiled
        except ImportError as error:
            raise Refusal(
                400, "This gateway cannot constrain answers: llguidance is not installed.", param=shape.param
            ) from error
        try:
            grammar = self._tried(shape)
            with panics_as_errors("The grammar cannot be compiled."):
                matcher = compiled(grammar, self._llguidance_tokenizer())
            return LlGrammar(matcher, self._blanks if shape.kind == "json" else None)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"{shape.param}: {_short(error)}", param=shape.param, code="invalid_schema") from error

    def _tried(self, shape: Shape) -> str:
        """Compile a shape, within limits of time and memory, in a process that can be killed, and return its grammar.

        Raises:
            ValueError: The shape cannot be compiled.
            Refusal: Compiling takes too much time or memory.
        """
        source = shape.source
        if shape.kind == "json":
            source = closed(plain_schema(json.loads(source) if isinstance(source, str) else source))
        request = json.dumps({"kind": shape.kind, "source": source}).encode()
        try:
            answer = json.loads(self._sandboxes.ask(request, max_answer_bytes=_MAX_ANSWER_BYTES))
        except PromptError as error:
            raise Refusal(
                400,
                f"{shape.param} takes too much time or memory to compile: at most {COMPILE_S:g} s.",
                param=shape.param,
                code="invalid_schema",
            ) from error
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["grammar"])

    def _llguidance_tokenizer(self) -> Any:
        """llguidance's form of the tokenizer. Made once, which takes about a second for a large vocabulary."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._compiled_for is None:
                ends = sorted(self._tokenizer.eos_ids)
                if not ends:
                    raise PromptError(
                        "The model has no end-of-sequence token.", why="A constrained answer could not end."
                    )
                self._blanks = blanks_of(self._tokenizer)
                self._compiled_for = LLTokenizer(self._tokenizer.serialized(), eos_token=ends)
            return self._compiled_for


class LlGrammar:
    """The state of a grammar in one answer.

    Args:
        matcher: llguidance's matcher.
        blanks: The blanks of the vocabulary, to limit runs of them; None for no limit.
    """

    def __init__(self, matcher: Any, blanks: Blanks | None = None) -> None:
        self._matcher = matcher
        self._blanks = blanks
        self._num_blanks = 0

    def copy(self) -> LlGrammar:
        """The same grammar at the beginning of another answer."""
        return LlGrammar(self._matcher.deep_copy(), self._blanks)

    def mask(self) -> bytes:
        """A bitmask of the token ids that may come next.

        Raises:
            PromptError: The next tokens are too expensive to compute, so the grammar cannot continue.
        """
        with panics_as_errors("The answer's grammar cannot continue."):
            allowed: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise PromptError("The answer's grammar cannot continue.", why=_short(self._matcher.get_error()))
        if self._blanks is not None and self._num_blanks >= MAX_BLANKS:
            return self._blanks.without(allowed)
        return allowed

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        if self._blanks is not None:
            self._num_blanks = self._num_blanks + 1 if self._blanks.is_blank(token) else 0
        with contextlib.suppress(PromptError), panics_as_errors("The answer's grammar cannot continue."):
            self._matcher.consume_token(token)


def _dumped(shape: Shape) -> str:
    try:
        return json.dumps(shape.source)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{shape.param} is nested too deeply, or is not JSON.", param=shape.param) from error


def _short(error: object) -> str:
    """The error of a shape in one line."""
    text = " ".join(str(error).replace("<non-verbose/>", "").split())
    if keywords := _UNKNOWN_KEYWORDS.search(text):
        return f"the schema's {keywords[1].replace(chr(34), '')} is not supported."
    for name, reason in _REASONS:
        if name in text:
            return f"{reason}."
    return text[:300]
