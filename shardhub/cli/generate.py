"""`shardhub generate`, and what it shares with `chat`."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardhub.chain.drafts import Drafter, prompt_lookup, why_limited
from shardhub.chain.head import Head, Piece, Timing
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.checkpoint.unread_fields import warning
from shardhub.cli.addresses import node_addresses, nodes_file, read_nodes_file
from shardhub.cli.loop import LoopThread
from shardhub.cli.parity import warn_inexact
from shardhub.cli.places import Places
from shardhub.cli.run import Status, end_answer, note, note_between, write_answer
from shardhub.cli.signing import check_pipeline
from shardhub.cli.sizes import parse_memory, served_context
from shardhub.cli.trust import head_security
from shardhub.errors import PromptError, RouteError, UsageError
from shardhub.naming import CONFIG_FILE
from shardhub.parameters import MAX_SEED, SamplingParameters
from shardhub.shard import copy_named, read_config, read_pipeline

# Prompts from a file or pipe: more text than any model's context holds.
_MAX_PROMPT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """The options that say which pipeline runs where.

    Attributes:
        command: Which command they were given to, for messages.
    """

    command: str
    pipeline: str | None
    manifest: str | None
    nodes: list[str] | None
    no_local: bool
    context: int | None
    memory: str | None
    cache_dir: Path | None = None
    tls: Path | None = None
    insecure_lan: bool = False
    insecure_flag: str = "--insecure-lan"
    require_signature: str | None = None
    recovery: Recovery = Recovery.EXACT
    recover_wait_s: float = 60.0
    prefill_chunk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The options that say how tokens are chosen, and when to end.

    Attributes:
        draft: Tokens guessed at once; 0 goes one by one.
    """

    max_tokens: int
    temp: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    draft: int = 0

    def drafter(self) -> Drafter | None:
        """What guesses tokens, if that was asked for."""
        return prompt_lookup(num_drafts=self.draft) if self.draft else None

    def parameters(self) -> SamplingParameters:
        """Checked parameters; a seed is drawn where none was given.

        Raises:
            UsageError: One is out of its range.
        """
        return SamplingParameters(
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbelow(MAX_SEED) if self.seed is None else self.seed,
        )


def generate(
    head_options: HeadOptions,
    sampling: SamplingOptions,
    *,
    prompt: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Print the answer to one prompt."""
    parameters = sampling.parameters()
    text = _read_prompt(prompt)
    if raw and system is not None:
        raise UsageError("--system is a part of the chat template.", hint="Leave out --raw, or put it in the prompt.")
    with LoopThread() as loop:
        head = start_head(loop, head_options)
        try:
            if raw:
                ids = head.tokenizer.encode(text)
            else:
                messages = ([{"role": "system", "content": typed_text(system)}] if system else []) + [
                    {"role": "user", "content": text}
                ]
                ids = head.tokenizer.render_chat(messages).ids
            note_limits(head, sampling)
            timing = Timing()
            progress = prefill_progress()
            pieces: list[Piece] = []
            answer = head.answer(
                ids,
                parameters,
                max_tokens=sampling.max_tokens,
                stops=sampling.stop,
                drafter=sampling.drafter(),
                timing=timing,
                progress=progress,
            )
            for piece in loop.iterate(answer):
                pieces.append(piece)
                if not as_json:
                    write_answer(piece.text)
            if as_json:
                record = {
                    "text": "".join(piece.text for piece in pieces),
                    "tokens": [piece.token for piece in pieces if piece.token is not None],
                    "finish_reason": pieces[-1].finish,
                    "seed": parameters.seed,
                    "usage": usage(timing),
                    "pipeline_id": head.pipeline.manifest.pipeline_id,
                    "inexact": head.inexact,
                    "stages": head.describe_stages(),
                }
                print(json.dumps(record, ensure_ascii=False))
            else:
                end_answer()
                note(summary(timing))
        finally:
            loop.wait(head.stop())
    return 0


def _temporary_folder() -> Path:
    """A folder that is gone when the process has ended."""
    made = Path(tempfile.mkdtemp(prefix="shardhub-pipeline-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class Starting:
    """A head that can be started, again if its nodes are not there yet; a pipeline that is a repo is fetched first.

    Attributes:
        pipeline: What is to run.
    """

    def __init__(self, options: HeadOptions) -> None:
        self._options = options
        self._places = Places(options.cache_dir)
        self._security = head_security(options.tls, insecure_lan=options.insecure_lan, flag=options.insecure_flag)
        folder = self._places.pipeline_folder(pipeline_named(options))
        check_pipeline(folder, options.require_signature)
        self.pipeline = read_pipeline(folder)
        if options.require_signature is not None:
            self.pipeline = copy_named(self.pipeline, _temporary_folder())
        config = read_config(self.pipeline.folder / CONFIG_FILE, self.pipeline.manifest.config_digest)
        self._context = served_context(config, options.context)
        if text := warning(config, self._context.positions):
            note(f"warning: {text}")
        self._lacking: list[int] = []

    @property
    def names_nodes(self) -> bool:
        """Whether nodes are named, or may be later, in a nodes.toml."""
        file = nodes_file(self._options.nodes, self.pipeline)
        return file is not None or bool(node_addresses(self._options.nodes, self.pipeline))

    def start(self, loop: LoopThread) -> Head:
        """Connect to the nodes that are named now. Those that are written into nodes.toml later join the chain.

        Raises:
            As `Head.start`.
        """
        options, pipeline = self._options, self.pipeline
        addresses = node_addresses(options.nodes, pipeline)
        file = nodes_file(options.nodes, pipeline)
        self._lacking = []
        status = Status()
        try:
            head = loop.wait(
                Head.start(
                    pipeline,
                    addresses,
                    context=self._context.positions,
                    may_be_less=self._context.may_be_less,
                    budget_bytes=parse_memory(options.memory),
                    allow_local=not options.no_local,
                    find=self._find,
                    progress=status,
                    security=self._security,
                    scheduling=SchedulerSettings(
                        recovery=options.recovery,
                        recover_wait_s=options.recover_wait_s,
                        prefill_chunk=options.prefill_chunk,
                    ),
                )
            )
        finally:
            status.clear()
        note(head.line())
        note(self._context.line(head.chain.max_context))
        for address, error in head.absent.items():
            note(f"going on without {address}, which is used once it can be: {error.what} {error.why}".rstrip())
        head.scheduler.events.watch(lambda event: note_between(event.text))
        if file is not None:
            loop.wait(head.follow(lambda: read_nodes_file(file)))
        elif head.absent:
            loop.wait(head.follow(lambda: addresses))
        warn_inexact(head.inexact)
        return head

    def asked(self, error: RouteError) -> None:
        """Ask on a terminal whether the shards of stages nobody serves are to be fetched, and fetch them.

        Raises:
            RouteError: The error, with what can be done, where they are not.
        """
        manifest = self.pipeline.manifest
        missing = [index for index in self._lacking if self._places.published(self.pipeline, index)]
        if self._options.no_local or not missing or missing != self._lacking:
            raise error
        size = sum(manifest.stages[index].size_bytes for index in missing)
        text = f"stage {', '.join(map(str, missing))} ({size / 1e9:.2f} GB)"
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            repos = " ".join(self._places.published(self.pipeline, index) for index in missing)
            hint = f"Serve it somewhere and name it with --node; or, to run {text} here: shardhub pull {repos}"
            raise RouteError(error.what, why=error.why, hint=hint) from error
        if not confirm(f"Nobody serves {text}. Fetch it and run it here?"):
            raise error
        for index in missing:
            self._places.shard(self.pipeline, index)

    def _find(self, index: int) -> Path | None:
        folder = self._places.here(self.pipeline, index)
        if folder is None:
            self._lacking.append(index)
        return folder


def start_head(loop: LoopThread, options: HeadOptions) -> Head:
    """Connect to the nodes an invocation names.

    Stages that no node serves run here if their shards are here. On a terminal it is asked whether those that are
    not are to be fetched.
    """
    starting = Starting(options)
    try:
        return starting.start(loop)
    except RouteError as error:
        starting.asked(error)
        return starting.start(loop)


def note_limits(head: Head, sampling: SamplingOptions) -> None:
    """Say why drafts that were asked for do not come, or not always."""
    if sampling.draft and (why := why_limited(head.chain.rewind_limit, head.chain.max_context)):
        note(why)


def confirm(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def pipeline_named(options: HeadOptions) -> str:
    """The pipeline given as an argument or by --manifest.

    Raises:
        UsageError: Neither, or two different ones.
    """
    given = {text for text in (options.pipeline, options.manifest) if text is not None}
    if len(given) != 1:
        raise UsageError(
            "Which pipeline?" if not given else "Two pipelines were named.",
            hint=f"Give its folder or repo, such as: shardhub {options.command} ORG/MODEL-pipeline",
        )
    return given.pop()


def prefill_progress() -> Callable[[int, int], None]:
    """Progress of a long prompt on a terminal; nothing into a pipe."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if total > 256:
            end = "\r" + " " * 40 + "\r" if done == total else ""
            sys.stderr.write(f"\rprompt {done}/{total} tokens{end}")
            sys.stderr.flush()

    return show


def usage(timing: Timing) -> dict[str, float | int]:
    """Sizes in tokens, times in seconds, and whether losses of nodes may have changed a number."""
    return {
        "prompt_tokens": timing.num_prompt,
        "reused_tokens": timing.num_reused,
        "completion_tokens": timing.num_generated,
        "drafted_tokens": timing.num_drafted,
        "accepted_tokens": timing.num_accepted,
        "recoveries": timing.num_recoveries,
        "is_exact": timing.is_exact,
        "time_to_first_token_s": round(timing.first_token_s, 4),
        "total_s": round(timing.total_s, 4),
        "tokens_per_s": round(timing.tokens_per_s, 3),
    }


def summary(timing: Timing) -> str:
    """One line about an answer."""
    reused = f" ({timing.num_reused} of them reused)" if timing.num_reused else ""
    drafts = f", {timing.num_accepted} of {timing.num_drafted} guesses right" if timing.num_drafted else ""
    losses = f", went on after {timing.num_recoveries} loss" if timing.num_recoveries else ""
    losses += "es" if timing.num_recoveries > 1 else ""
    losses += "" if timing.is_exact else " (not bit-exact)"
    return (
        f"{timing.num_prompt} prompt tokens{reused}, {timing.num_generated} generated, "
        f"first after {timing.first_token_s:.2f} s, then {timing.tokens_per_s:.1f} tokens/s{drafts}{losses}"
    )


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise UsageError("There is no prompt.", hint='Give one with --prompt "...", or pipe it in.')
    if prompt is None or prompt == "-":
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        if len(data) > _MAX_PROMPT_BYTES:
            raise PromptError(f"The prompt has more than {_MAX_PROMPT_BYTES} bytes.", hint="Shorten it.")
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError("The prompt is not UTF-8 text.", why=f"{error}.") from error
    if not prompt:
        raise PromptError("The prompt is empty.", hint="Give some text.")
    return typed_text(prompt)


def typed_text(text: str) -> str:
    """Text of an option as it was typed: terminals send UTF-8 also where the locale names another encoding.

    Raises:
        PromptError: It is not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if any(map(_is_surrogate, text)) else text
    except UnicodeError as error:
        raise PromptError("An option's text is not UTF-8.", why=f"{error}.") from error


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF
