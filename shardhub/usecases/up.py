"""Bringing a model up on a cluster: placed, read by each machine for itself, and ordered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardhub.errors import PlanError, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.gather import cut_journal
from shardhub.hub.reference import is_url
from shardhub.placing.cluster import Cluster as PlacingCluster
from shardhub.resident.deployments import HANDED_ON, MAX_SESSIONS, Capacity, Deployment, PlacedModel
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.machine import UNMEASURED_BYTES_PER_S, as_placed, links_of
from shardhub.resident.order import HandedDocument
from shardhub.resident.reading import ReadReport
from shardhub.setting_checks import check_settings
from shardhub.sizes import size_text
from shardhub.usecases.cluster import Cluster
from shardhub.usecases.cluster_cut import ClusterCut, ClusterCutSettings
from shardhub.usecases.cluster_view import ClusterMachine, pipelines_of
from shardhub.usecases.cut import Cut
from shardhub.usecases.deployed import MachineProgress, check_up
from shardhub.usecases.order_follower import Display, replaced
from shardhub.usecases.placeable import Placeable, open_placeable
from shardhub.usecases.publish import PublishSettings, publish
from shardhub.usecases.push import Publication
from shardhub.usecases.up_checks import check_pushable, hub_warning, replaced_model
from shardhub.usecases.up_plan import PlacingSettings, UpPlan, plan_up
from shardhub.usecases.watcher import SILENT, Watcher

# Most sessions of nodes for which nothing else is said.
_USUAL_SESSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings:
    """How a model is brought up.

    Attributes:
        cutting: How a plain model is cut.
        placing: What it is placed for.
        max_sessions: Most sessions at once; None takes 16, or the sessions that it is placed for if those are more.
        kv_bits: Keep K and V in 4 or 8 bits; None keeps them as they are.
    """

    cutting: ClusterCutSettings = field(default_factory=ClusterCutSettings)
    placing: PlacingSettings = field(default_factory=PlacingSettings)
    max_sessions: int | None = None
    kv_bits: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, max_sessions=(1, MAX_SESSIONS))
        sessions = self.placing.sessions
        if self.max_sessions is not None and self.max_sessions < sessions:
            raise UsageError(
                f"`max_sessions` is {self.max_sessions}, and `sessions` is {sessions}.",
                why="There has to be room for all of these sessions at once.",
                hint=f"Give `max_sessions` {sessions} or more, or leave it out.",
            )
        if self.kv_bits not in (None, 4, 8):
            raise UsageError(f"K and V cannot be kept in {self.kv_bits} bits.", hint="Give `kv_bits` 4 or 8.")

    @property
    def session_limit(self) -> int:
        """Most sessions at once."""
        return self.max_sessions or max(_USUAL_SESSIONS, self.placing.sessions)


def machines_of(
    machines: Sequence[ClusterMachine], placeable: Placeable, *, watcher: Watcher = SILENT
) -> PlacingCluster:
    """The machines that answer, as placing takes them.

    Args:
        machines: All machines.
        placeable: What is placed: what its nodes hold now is free for it.
        watcher: Told of machines that cannot be counted on.

    Raises:
        PlanError: No machine answers.
    """
    answering = []
    for machine in machines:
        if machine.state is None:
            watcher.note(f"{machine.name} does not answer, and is left out.")
            continue
        facts = machine.state.facts
        answering.append(facts)
        if not facts.is_measured:
            rate = f"{size_text(int(UNMEASURED_BYTES_PER_S))}/s"
            watcher.note(f"{machine.name} has not been measured yet, and counts as reading {rate}.")
    if not answering:
        raise PlanError("No machine of the cluster answers.", hint="Look at them: shardhub machines")
    deployments = [pipeline.deployment for pipeline in pipelines_of(machines)]
    return PlacingCluster(
        machines=tuple(
            as_placed(facts, beside=placeable.name, is_quantised=placeable.is_quantised, deployments=deployments)
            for facts in answering
        ),
        links=links_of(answering),
    )


class Up:
    """A model that is placed on the cluster, and not ordered yet.

    Args:
        cluster: The cluster.
        model: Folder, Hub id or URL of a model or a pipeline.
        settings: How it is brought up.
        watcher: Notified of the current activity.

    Attributes:
        plan: Which machine runs which layers.

    Raises:
        DoesNotFit: It does not fit; says what is lacking.
        As `open_placeable` and `plan_up`.
    """

    def __init__(self, cluster: Cluster, model: str | Path, settings: UpSettings, watcher: Watcher = SILENT) -> None:
        self._cluster = cluster
        self._access = HubAccess.of_environment(os.environ)
        self._settings = settings
        self._watcher = watcher
        placeable = open_placeable(model, settings.cutting, watcher)
        machines = cluster.machines()
        here = next(machine.name for machine in machines if machine.is_own)
        placing = machines_of(machines, placeable, watcher=watcher)
        plan = plan_up(placeable, placing, settings.placing, here=here)
        replaces = replaced_model(pipelines_of(machines), placeable, cluster.place)
        self.plan: UpPlan = replace(plan, replaces=replaces)
        if settings.cutting.source_endpoint is None and not is_url(model):
            others = [name for name in plan.machines if name != here]
            if (warning := hub_warning(self._access, others)) is not None:
                watcher.note(warning)
        self._warn_of_disks(machines)

    def order(self, display: Display = lambda _: None) -> Deployment:
        """Have every machine read its layers, if the model is a plain one, and order what is placed.

        Stopped before its end, nothing is ordered; what machines have read is kept for the next time.

        Args:
            display: Called with how far each machine is.

        Raises:
            AccessError: This machine gives no orders.
            ShardhubError: A machine cannot read its layers; the message names it.
        """
        placeable, documents = self.plan.placeable, []
        if placeable.candidate is not None:
            cut = placeable.candidate.cut(self.plan.cuts, self._watcher)
            assembled = cut.assemble(self._digests(cut, display))
            manifest, place = assembled.manifest, HANDED_ON
            documents = [HandedDocument(name=name, data=data) for name, data in assembled.documents.items()]
        else:
            assert placeable.pipeline is not None
            assert placeable.place is not None
            manifest, place = placeable.pipeline.manifest, placeable.place
        counter, member = self._cluster.next_order(placeable.name)
        # What no other machine can read, none can take over.
        heals = self._settings.placing.heals and not placeable.is_only_here
        deployment = self.plan.deployment(
            pipeline_id=manifest.pipeline_id,
            place=place,
            counter=counter,
            member=member,
            capacity=Capacity.model_validate(
                {
                    "context": self._settings.cutting.context,
                    "max_sessions": self._settings.session_limit,
                    "kv_bits": self._settings.kv_bits,
                }
            ),
            borders=(0, *(stage.stop for stage in manifest.stages)),
            hub=self._access.endpoint,
            placed=PlacedModel.of(placeable.facts.costs, self.plan.wishes, is_quantised=placeable.is_quantised)
            if heals
            else None,
        )
        orders = self._cluster.want(deployment, documents, hub_token=self._access.token).by_pipeline
        if orders.get(deployment.name) != deployment.order:
            raise replaced(deployment)
        return deployment

    def _digests(self, cut: ClusterCut, display: Display) -> dict[str, str]:
        """Have the weight files of a plain model read; returns their sha256 by key."""
        shards = cut.job.shards
        machines = {shard.index: self.plan.machine_of(shard.contents.start) for shard in shards}
        journal = cut_journal(Cache())
        keys = {key for shard in shards for key in shard.keys}
        known = {key: sha256 for key, sha256 in journal.digests.items() if key in keys}
        made = cut.made
        digests = dict(known)
        if made:
            size = sum(file.size_bytes for file in made)
            self._watcher.note(
                f"{len(made)} weight files ({size_text(size)}) are computed on this machine, because the source does "
                "not have them as mlx-lm needs them. The other machines take theirs from it."
            )
            digests |= cut.make(Cache(), self._watcher).digests
        orders = cut.orders(machines, known)
        progress = {
            name: MachineProgress(machine=name, layers=self._layers(name), doing="waiting to read its layers")
            for name in dict.fromkeys(machines.values())
        }

        def tell(machine: str, report: ReadReport) -> None:
            progress[machine] = MachineProgress(
                machine=machine,
                layers=self._layers(machine),
                doing="has read its layers" if report.digests is not None else report.doing,
                done_bytes=report.done_bytes,
                total_bytes=report.total_bytes,
            )
            display(list(progress.values()))

        if orders:
            digests |= self._cluster.read_files(orders, self._access, tell)
            for key, sha256 in digests.items():
                journal.add(key, sha256)
        return digests

    def _layers(self, machine: str) -> tuple[int, int]:
        stage = next(stage for stage in self.plan.placements[0].stages if stage.machine == machine)
        return stage.start, stage.stop - 1

    def _warn_of_disks(self, machines: Sequence[ClusterMachine]) -> None:
        free = {machine.name: facts.disk_free_bytes for machine in machines if (facts := machine.facts) is not None}
        for placement in self.plan.placements:
            for stage in placement.stages:
                if stage.size_bytes > free.get(stage.machine, stage.size_bytes):
                    self._watcher.note(
                        f"warning: {stage.machine} has {size_text(free[stage.machine])} of its disk free, and its "
                        f"layers take {size_text(stage.size_bytes)}, unless it has them already"
                    )


def publish_cut(plan: UpPlan, settings: UpSettings, *, assume_yes: bool, watcher: Watcher = SILENT) -> Publication:
    """Publish the pipeline of a plain model, with the stages that the cluster serves.

    Its weights stay in the model's repo; those that are computed are uploaded.

    Raises:
        As `check_pushable` and `publish`.
    """
    check_pushable(plan.placeable, watcher)
    candidate = plan.placeable.candidate
    assert candidate is not None
    cutting = settings.cutting
    return publish(
        candidate.model_name,
        Cut(cuts=plan.cuts) if plan.cuts else Cut(stages=1),
        PublishSettings(
            name=candidate.name,
            by_reference=not candidate.is_in_folder and cutting.quantisation is None,
            source_endpoint=cutting.source_endpoint,
            ignore_code=cutting.ignore_code,
            ignore_fields=cutting.ignore_fields,
            quantisation=cutting.quantisation,
            assume_yes=assume_yes,
        ),
        watcher,
    )


def down(cluster: Cluster, name: str) -> Deployment:
    """Order that a pipeline is not served any more.

    Raises:
        UsageError: It is not up.
        AccessError: This machine gives no orders.
    """
    check_up(cluster.pipelines(), name)
    counter, member = cluster.next_order(name)
    deployment = Deployment(name=name, counter=counter, member=member)
    if cluster.want(deployment).by_pipeline.get(name) != deployment.order:
        raise replaced(deployment)
    return deployment
