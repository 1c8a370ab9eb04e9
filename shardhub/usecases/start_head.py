"""Starting a head: a pipeline, the nodes that are named, and what may run in this process."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shardhub.chain.head import Head
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.checkpoint.unread_fields import warning
from shardhub.errors import RouteError, UsageError
from shardhub.naming import CONFIG_FILE
from shardhub.shard import copy_named, read_config, read_pipeline
from shardhub.sizes import size_text
from shardhub.usecases.addresses import node_addresses, nodes_file, read_nodes_file
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.places import Places
from shardhub.usecases.signing import check_pipeline
from shardhub.usecases.sizes import parse_memory, served_context
from shardhub.usecases.terminal import Status, note, note_between
from shardhub.usecases.trust import head_security


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
        note(self._context.line(head.capacity.max_context))
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
        text = f"stage {', '.join(map(str, missing))} ({size_text(size)})"
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
