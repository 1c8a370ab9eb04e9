"""Starting a head: a pipeline, the named nodes, and the stages that may run in this process."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.chain.head import Head
from shardhub.chain.settings import Recovery, SchedulerSettings
from shardhub.checkpoint.unread_fields import warning
from shardhub.errors import OtherPipeline, RouteError
from shardhub.hub.reference import Reference, parse_reference
from shardhub.naming import CONFIG_FILE
from shardhub.security.trust import Security
from shardhub.setting_checks import check_settings
from shardhub.shard import copy_named, read_config, read_pipeline
from shardhub.sizes import size_text
from shardhub.usecases.addresses import has_changing, node_addresses, nodes_file, read_nodes_file
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbourhood import asked_neighbours
from shardhub.usecases.other_version import explain_other_version
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.places import Places, hub
from shardhub.usecases.served import ServedNodes, served_nodes
from shardhub.usecases.signing import check_pipeline
from shardhub.usecases.sizes import check_sizes, parse_memory, served_context
from shardhub.usecases.trust import head_security
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """The pipeline to run, and where it runs.

    Attributes:
        pipeline: Its folder or Hub id.
        nodes: Addresses of nodes, in any order, or one of them; if empty, SHARDHUB_NODES or nodes.toml name them, or
            else this machine's cluster if the pipeline is up there.
        mixed_nodes: Whether `nodes` are those of several pipelines; nodes of the others are then left out.
        allow_local: Whether a stage that no node serves may run in this process.
        context: Positions of a session, prompt and answer; None takes the model's limit, as memory allows.
        memory: Memory budget for stages of this process, such as `12GB`; None derives it from the machine.
        cache_dir: The cache's folder; None takes the user's.
        tls: Folder of this machine's certificates, for loopback too.
        insecure_lan: Reach nodes on other machines without TLS.
        insecure_flag: The caller's name for `insecure_lan`, for messages.
        require_signature: Public key that must have signed the pipeline, or its file.
        recovery: What happens when a node is lost.
        recover_wait_s: How long to wait for another node.
        prefill_chunk: Ids of a prompt's chunks; None sizes them by time and bytes.
    """

    pipeline: str | Path
    nodes: tuple[str, ...] | str = ()
    mixed_nodes: bool = False
    allow_local: bool = True
    context: int | None = None
    memory: str | None = None
    cache_dir: str | Path | None = None
    tls: str | Path | None = None
    insecure_lan: bool = False
    insecure_flag: str = "`insecure_lan`"
    require_signature: str | None = None
    recovery: Recovery = Recovery.EXACT
    recover_wait_s: float = 60.0
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, recover_wait_s=(0, None), prefill_chunk=(1, None))
        check_sizes(self.memory)

    @staticmethod
    def of(given: HeadSettings | str | Path) -> HeadSettings:
        """Settings of a head from a pipeline alone, or those that are given."""
        return given if isinstance(given, HeadSettings) else HeadSettings(pipeline=given)


class Starting:
    """A head that can be started, again if its nodes are not ready yet; fetches a pipeline that is a repo.

    Args:
        settings: The pipeline, and where it runs.
        watcher: Notified of the current activity, and of nodes that come and go.
        named: Returns the addresses of nodes that are named now, in place of those of the settings.
        security: How nodes are reached, in place of what the settings say.

    Attributes:
        pipeline: The pipeline to run.
    """

    def __init__(
        self,
        settings: HeadSettings,
        watcher: Watcher = SILENT,
        *,
        named: Callable[[], Sequence[str]] | None = None,
        security: Security | None = None,
    ) -> None:
        self._settings = settings
        self._watcher = watcher
        self._named = named
        self._budget_bytes = parse_memory(settings.memory)
        self._places = Places(settings.cache_dir, watcher=watcher)
        self._security = security or head_security(
            settings.tls, insecure_lan=settings.insecure_lan, flag=settings.insecure_flag, watcher=watcher
        )
        folder = self._places.pipeline_folder(settings.pipeline)
        check_pipeline(folder, settings.require_signature, watcher)
        self.pipeline = read_pipeline(folder)
        if settings.require_signature is not None:
            self.pipeline = copy_named(self.pipeline, _temporary_folder())
        config = read_config(self.pipeline.folder / CONFIG_FILE, self.pipeline.manifest.config_digest)
        self._context = served_context(config, settings.context)
        if text := warning(config, self._context.positions):
            watcher.note(f"warning: {text}")
        self._lacking: list[int] = []
        self._served: ServedNodes | None = None
        if not self._names_nodes and not settings.insecure_lan:
            self._served = served_nodes(self.pipeline.manifest.pipeline_id, settings.tls)
        if self._served is not None:
            self._security = self._served.security

    @property
    def names_nodes(self) -> bool:
        """Whether nodes are named, or may be later in a nodes.toml, or are those of this machine's cluster."""
        return self._served is not None or self._names_nodes

    @property
    def _names_nodes(self) -> bool:
        file = nodes_file(self._settings.nodes, self.pipeline)
        return self._named is not None or file is not None or bool(node_addresses(self._settings.nodes, self.pipeline))

    async def start(self) -> Head:
        """Connect to the nodes that are named now; those written to nodes.toml later join the chain.

        Raises:
            As `Head.start`.
        """
        settings, pipeline, watcher = self._settings, self.pipeline, self._watcher
        served = self._served
        is_named = served is not None or self._named is not None
        file = None if is_named else nodes_file(settings.nodes, pipeline)
        if served is not None:
            addresses = list(await asyncio.to_thread(served.wait, watcher))
        elif self._named is not None:
            addresses = list(self._named())
        else:
            addresses = await asyncio.to_thread(node_addresses, settings.nodes, pipeline)  # names may be resolved
        self._lacking = []
        try:
            head = await Head.start(
                pipeline,
                addresses,
                context=self._context.positions,
                may_be_less=self._context.may_be_less,
                mixed=settings.mixed_nodes,
                budget_bytes=self._budget_bytes,
                allow_local=settings.allow_local,
                find=self._find,
                progress=watcher.doing,
                security=self._security,
                scheduling=SchedulerSettings(
                    recovery=settings.recovery,
                    recover_wait_s=settings.recover_wait_s,
                    prefill_chunk=settings.prefill_chunk,
                ),
            )
        except OtherPipeline as other:
            raise await asyncio.to_thread(self._explained, other) from other
        finally:
            watcher.doing("")
        watcher.note(head.line())
        watcher.note(self._context.line(head.capacity.max_context))
        for address, error in head.absent.items():
            watcher.note(
                f"starting without {address}, which joins the chain once it can be used: {error.what} "
                f"{error.why}".rstrip()
            )
        head.scheduler.events.watch(lambda event: watcher.note(event.text))
        head.introduce_nodes()
        if served is not None:
            await head.follow(served.addresses)
        elif self._named is not None:
            await head.follow(self._named)
        elif file is not None:
            await head.follow(lambda: read_nodes_file(file))
        elif has_changing(settings.nodes):
            await head.follow(lambda: node_addresses(settings.nodes, pipeline))
        elif head.absent:
            await head.follow(lambda: addresses)
        warn_inexact(head.inexact, watcher)
        return head

    def fetch_lacking(self, error: RouteError) -> None:
        """Ask whether to fetch the shards of stages that no node serves, and fetch them if the answer is yes.

        Raises:
            RouteError: They are not fetched: the given error, with advice.
            DoesNotFit: They are too large for this machine.
        """
        manifest = self.pipeline.manifest
        missing = [index for index in self._lacking if self._places.published(self.pipeline, index)]
        if not self._settings.allow_local or not missing or missing != self._lacking:
            raise error
        from shardhub.usecases.choose_shards import check_pipeline_fit  # loads MLX, as the stages will

        check_pipeline_fit(self._places, self.pipeline, missing, self._budget_bytes)
        size = sum(manifest.stages[index].size_bytes for index in missing)
        stages, them = ("stage", "it") if len(missing) == 1 else ("stages", "them")
        text = f"{stages} {', '.join(map(str, missing))} ({size_text(size)})"
        answer = self._watcher.ask(f"No node serves {text}. Fetch {them} and run {them} here?")
        if answer is None:
            repos = " ".join(self._places.published(self.pipeline, index) for index in missing)
            hint = (
                f"Serve {them} on a machine and give its address with `nodes`. To run {text} here instead: "
                f"shardhub pull {repos}"
            )
            raise RouteError(error.what, why=error.why, hint=hint) from error
        if not answer:
            raise error
        with asked_neighbours(
            lambda: node_addresses(self._settings.nodes, self.pipeline),
            cache=self._places.cache,
            security=self._security,
            watcher=self._watcher,
        ) as neighbours:
            places = Places(self._settings.cache_dir, watcher=self._watcher, neighbours=neighbours)
            for index in missing:
                places.shard(self.pipeline, index)

    def _explained(self, error: OtherPipeline) -> OtherPipeline:
        place = parse_reference(self._settings.pipeline)
        return explain_other_version(
            error,
            place if isinstance(place, Reference) else None,
            self.pipeline.folder.name,  # in the cache, folders are named by commits
            hub,
            self._watcher,
        )

    def _find(self, index: int) -> Path | None:
        folder = self._places.here(self.pipeline, index)
        if folder is None:
            self._lacking.append(index)
        return folder


def _temporary_folder() -> Path:
    """Make a folder that is deleted when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="shardhub-pipeline-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def start_head(loop: LoopThread, settings: HeadSettings, watcher: Watcher = SILENT) -> Head:
    """Connect to the named nodes and start a head.

    Stages that no node serves run here if their shards are here; the watcher is asked whether to fetch missing ones.

    Raises:
        RouteError: A stage has no server, and is not to run here.
        As `Head.start`.
    """
    starting = Starting(settings, watcher)
    try:
        return loop.wait(starting.start())
    except RouteError as error:
        starting.fetch_lacking(error)
        return loop.wait(starting.start())
