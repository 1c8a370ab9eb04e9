"""A pipeline that is up in this machine's cluster, as a head uses it: where its nodes answer, now and later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import NodeUnreachable, RouteError, ShardhubError, UsageError
from shardhub.resident.deployments import HANDED_ON
from shardhub.security.trust import Security
from shardhub.usecases.cluster import Cluster, ClusterSettings, open_cluster
from shardhub.usecases.cluster_place import ClusterPlace, own_resident
from shardhub.usecases.cluster_view import ServedPipeline, pipelines_of
from shardhub.usecases.deployed import check_up
from shardhub.usecases.standstill import Standstill, waiting_text
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPipeline:
    """A pipeline that is up.

    Attributes:
        name: In the cluster.
        pipeline: Its folder or Hub id.
    """

    name: str
    pipeline: str


def choose_served(
    name: str | None = None, place: ClusterPlace | None = None, *, example: str = "ORG/MODEL-pipeline"
) -> ChosenPipeline:
    """Choose a pipeline that is up: that of a name, or the only one.

    Args:
        name: Its name in the cluster.
        place: The folders of this machine's state and certificates.
        example: How a pipeline is named instead, for messages.

    Raises:
        UsageError: No pipeline was named, and none or several are up; or it is not up.
        ShardhubError: This machine's resident cannot be asked.
    """
    place = place or ClusterPlace()
    try:
        with open_cluster(ClusterSettings(place=place)) as cluster:
            pipelines = cluster.pipelines()
    except NodeUnreachable as error:
        raise none_given(error, example) from error
    served = choose_pipeline(pipelines, name)
    return ChosenPipeline(name=served.name, pipeline=place_of(served, place))


def none_given(error: NodeUnreachable, example: str) -> UsageError:
    """The error of a command to which no pipeline was given, where no resident says what is up.

    Args:
        example: The command with a pipeline.
    """
    return UsageError(
        "No pipeline was given.",
        why=f"{error.what} So it is not known what is up in a cluster.",
        hint=f"Give one folder or repo, such as: {example}. Or bring one up: shardhub up MODEL",
    )


def place_of(served: ServedPipeline, place: ClusterPlace) -> str:
    """The folder or Hub id of a pipeline that is up.

    Args:
        place: The folders of this machine's state and certificates.
    """
    deployment = served.deployment
    if deployment.place == HANDED_ON and deployment.pipeline_id is not None:
        return str(place.folder.manifest_folder(deployment.pipeline_id))
    return str(deployment.place)


def choose_pipeline(pipelines: Sequence[ServedPipeline], name: str | None) -> ServedPipeline:
    """The pipeline of a name, or the only one.

    Raises:
        UsageError: No pipeline was named, and none or several are up; or it is not up.
    """
    if name is not None:
        return check_up(pipelines, name)
    if len(pipelines) == 1:
        return pipelines[0]
    if not pipelines:
        raise UsageError("No pipeline is up in this cluster.", hint="Bring one up: shardhub up MODEL")
    names = ", ".join(pipeline.name for pipeline in pipelines)
    raise UsageError(
        "Several pipelines are up.",
        why=f"They are {names}.",
        hint=f"Name one, such as: shardhub generate --model {pipelines[0].name}",
    )


class ServedNodes:
    """The nodes of a pipeline that is up.

    Args:
        pipeline_id: Digest of its manifest.
        place: The folders of this machine's state and certificates.

    Attributes:
        security: How they are reached.

    Raises:
        NodeUnreachable: No resident runs here.
        IdentityError: This machine's certificate cannot be used.
    """

    def __init__(self, pipeline_id: str, place: ClusterPlace) -> None:
        self._pipeline_id = pipeline_id
        self._settings = ClusterSettings(place=place)
        self._last: list[str] = []
        self.security: Security = own_resident(place).security

    @property
    def is_up(self) -> bool:
        """Whether the pipeline is ordered."""
        try:
            with open_cluster(self._settings) as cluster:
                return self._served(cluster.pipelines()) is not None
        except ShardhubError:
            return False

    def addresses(self) -> Sequence[str]:
        """Where its nodes answer now; if the resident does not say, where they answered last."""
        try:
            with open_cluster(self._settings) as cluster:
                served = self._served(cluster.pipelines())
        except ShardhubError:
            return self._last
        if served is not None:
            self._last = list(served.addresses)
        return self._last

    def wait(self, watcher: Watcher = SILENT, clock: Clock = SYSTEM_CLOCK) -> Sequence[str]:
        """Wait until one of its chains is whole; returns where its nodes answer.

        Args:
            watcher: Told of what is missing, and how far that is.

        Raises:
            RouteError: It is not up, or nothing goes on.
            ShardhubError: A machine cannot serve its layers, and says why.
        """
        try:
            with open_cluster(self._settings) as cluster:
                served = self._wait(cluster, watcher, clock)
        finally:
            watcher.doing("")
        self._last = list(served.addresses)
        return self._last

    def _wait(self, cluster: Cluster, watcher: Watcher, clock: Clock) -> ServedPipeline:
        standstill = Standstill()
        for machines in cluster.watch():
            served = self._served(pipelines_of(machines))
            if served is None:
                raise RouteError("The pipeline is not up any more.", hint="Bring it up: shardhub up MODEL")
            if served.is_ready:
                return served
            standstill.check(served.name, served.nodes, clock.now())
            watcher.doing(f"waiting for nodes: {waiting_text([node for node in served.nodes if not node.is_ready])}")
        raise RouteError("This machine's resident has ended.", hint="Start it: shardhub resident start")

    def _served(self, pipelines: Sequence[ServedPipeline]) -> ServedPipeline | None:
        return next((each for each in pipelines if each.deployment.pipeline_id == self._pipeline_id), None)


def served_nodes(pipeline_id: str, tls: str | Path | None) -> ServedNodes | None:
    """The nodes of a pipeline, if it is up in this machine's cluster; None if it is not, or no resident runs here.

    Args:
        pipeline_id: Digest of its manifest.
        tls: Folder of this machine's certificates, if it was named.
    """
    try:
        nodes = ServedNodes(pipeline_id, ClusterPlace(tls=None if tls is None else Path(tls)))
    except ShardhubError:
        return None
    return nodes if nodes.is_up else None
