"""What is checked, and said, before a model is brought up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardhub.errors import ShardhubError, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.resident.deployments import HANDED_ON
from shardhub.resident.hub_access import HubAccess
from shardhub.shard import read_manifest
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.cluster_view import ServedPipeline
from shardhub.usecases.placeable import Placeable
from shardhub.usecases.places import hub
from shardhub.usecases.served import place_of
from shardhub.usecases.watcher import SILENT, Watcher

_FOLDER = "a folder"


def check_pushable(placeable: Placeable, watcher: Watcher = SILENT) -> None:
    """Check that a model's pipeline can be published, before anything is done for it.

    Args:
        placeable: The model.
        watcher: Told of waits for the Hub.

    Raises:
        UsageError: It is a pipeline already.
        AccessError: There is no token, or it cannot write.
        HubUnreachable: The Hub does not answer.
    """
    if placeable.candidate is None:
        raise UsageError(
            f"{placeable.name} is a pipeline already.",
            why="Only the pipeline of a plain model can be published when the model is brought up.",
            hint="Leave out `push`.",
        )
    HubCalls(api=hub(), notice=watcher.note).writer()


def replaced_model(pipelines: Sequence[ServedPipeline], placeable: Placeable, place: ClusterPlace) -> str | None:
    """Another model that is up by the name of one that is placed, and would be replaced; None without one.

    Args:
        pipelines: Those that are up.
        placeable: The model that is placed.
        place: The folders of this machine's state.
    """
    for served in pipelines:
        if served.name == placeable.name and (model := _served_model(served, place)) != _model_of(placeable):
            return model
    return None


def hub_warning(access: HubAccess, others: Sequence[str]) -> str | None:
    """A warning that other machines cannot read from a Hub that its URL puts on this machine; None if they can.

    Args:
        access: The Hub.
        others: Names of the other machines that read from it.
    """
    if not access.is_on_loopback or not others:
        return None
    names = ", ".join(others)
    return (
        f"warning: HF_ENDPOINT is {access.endpoint}, an address that leads every machine to itself, so that {names} "
        "cannot read from it; set it to this machine's address in your network"
    )


def _model_of(placeable: Placeable) -> str:
    """The repo of a model or a pipeline."""
    if placeable.candidate is not None:
        return placeable.candidate.model.source.repo or _FOLDER
    return str(placeable.place).partition("@")[0]


def _served_model(served: ServedPipeline, place: ClusterPlace) -> str:
    """The repo of a model or a pipeline that is up."""
    if served.deployment.place != HANDED_ON:
        return str(served.deployment.place).partition("@")[0]
    try:
        return read_manifest(Path(place_of(served, place))).source.repo or _FOLDER
    except ShardhubError:  # the documents have not come to this machine yet
        return "another model"
