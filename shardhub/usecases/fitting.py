"""What fits the machines of a cluster, of the pipelines in the cache and on the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.errors import DoesNotFit, HubUnreachable, ShardhubError
from shardhub.usecases.cache import cached
from shardhub.usecases.cluster import Cluster
from shardhub.usecases.placeable import open_placeable
from shardhub.usecases.search import SearchSettings, search
from shardhub.usecases.up import UpSettings, machines_of
from shardhub.usecases.up_plan import plan_up
from shardhub.usecases.watcher import SILENT, Watcher

# Pipelines of the Hub that are looked at: each takes some small requests.
MAX_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """A pipeline, and how fast it would be.

    Attributes:
        name: Its repo.
        size_bytes: Of its weights.
        tokens_per_s: Predicted for one stream; None if it does not fit.
        machines: Those that would serve it.
        why_not: Why it does not fit.
    """

    name: str
    size_bytes: int = 0
    tokens_per_s: float | None = None
    machines: tuple[str, ...] = ()
    why_not: str = ""


def list_fitting(cluster: Cluster, settings: UpSettings, watcher: Watcher = SILENT) -> tuple[Fitting, ...]:
    """List the pipelines of the cache and the Hub, the fastest first; those that do not fit come last.

    Args:
        cluster: The machines.
        settings: What they would be placed for.
        watcher: Notified of the current activity, and of pipelines that cannot be read.
    """
    repos = dict.fromkeys(one.held.repo for one in cached(offline=True) if one.held.kind == "pipeline")
    try:
        repos |= dict.fromkeys(one.repo for one in search("", SearchSettings(limit=MAX_LISTED), watcher))
    except HubUnreachable as error:
        watcher.note(f"{error.what} Only pipelines of the cache are listed.")
    machines = cluster.machines()
    here = next(machine.name for machine in machines if machine.is_own)
    fitting = []
    for number, repo in enumerate(repos):
        watcher.doing(f"looking at pipelines: {number} of {len(repos)}")
        try:
            placeable = open_placeable(repo, settings.cutting, watcher)
            placing = machines_of(machines, placeable)
            try:
                plan = plan_up(placeable, placing, settings.placing, here=here)
            except DoesNotFit as error:
                fitting.append(Fitting(name=repo, size_bytes=placeable.size_bytes, why_not=error.why))
                continue
        except ShardhubError as error:
            watcher.note(f"{repo} is left out: {error.what}")
            continue
        fitting.append(
            Fitting(name=repo, size_bytes=placeable.size_bytes, tokens_per_s=plan.tokens_per_s, machines=plan.machines)
        )
    watcher.doing("")
    return tuple(sorted(fitting, key=lambda each: (each.tokens_per_s is None, -(each.tokens_per_s or 0), each.name)))
