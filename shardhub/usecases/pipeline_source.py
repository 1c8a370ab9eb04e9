"""The model that a pipeline was made from, opened to find the pipeline's tensors in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import UsageError
from shardhub.hub.hubs import hub_example, hubs_file, known_hubs, name_of
from shardhub.manifest import Manifest, SourceLocation
from shardhub.usecases.cut import specs
from shardhub.usecases.needs_mlx import needs_mlx
from shardhub.usecases.places import Model, hub, open_model
from shardhub.usecases.watcher import Watcher

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSource:
    """A pipeline's source, opened.

    Attributes:
        checkpoint: Its headers.
        stored_names: Its name of each tensor that is copied unchanged, by the name in shards.
        hub: Name of its Hub; None if it is the environment's.
    """

    checkpoint: Checkpoint
    stored_names: Mapping[str, str]
    hub: str | None


def open_source(manifest: Manifest, endpoint: str | None, watcher: Watcher) -> PipelineSource:
    """Open the model that a pipeline was made from, which is on a Hub.

    Args:
        manifest: The pipeline.
        endpoint: URL of the model's Hub; see `source_endpoint`.
        watcher: Notified of the current activity.

    Raises:
        UsageError: The user's settings do not name its Hub, or MLX cannot be imported.
        As `open_model`.
    """
    model = open_model(
        f"{manifest.source.repo}@{manifest.source.commit}",
        source_endpoint=endpoint,
        ignore_code=True,
        ignore_fields=None,
        watcher=watcher,
    )
    name = source_hub(model)
    with needs_mlx("the tensors of a shard cannot be matched with those of its source"):
        from shardhub.model.conversion import Conversion

    checkpoint = model.checkpoint
    copied = Conversion(checkpoint.config, specs(checkpoint)).copied
    return PipelineSource(checkpoint=checkpoint, stored_names=copied, hub=name)


def source_endpoint(manifest: Manifest, endpoint: str | None) -> str | None:
    """URL of the Hub that a pipeline's source is on; None takes the environment's.

    Args:
        manifest: The pipeline.
        endpoint: URL that the user gave; without one, the manifest may name a Hub that the user's settings know.
    """
    places = [location for stage in manifest.stages for location in stage.locations]
    names = {location.hub for location in places if isinstance(location, SourceLocation) and location.hub is not None}
    known = known_hubs()
    return endpoint or next((known[name].endpoint for name in sorted(names) if name in known), None)


def source_hub(model: Model) -> str | None:
    """Name of the Hub that nodes take a model's weights from; None if it is the environment's.

    Raises:
        UsageError: The user's settings do not name it: documents hold names and no addresses.
    """
    if model.endpoint is None:
        return None
    if (name := name_of(model.endpoint)) is None:
        raise UsageError(
            f"{model.source.repo} is at {model.endpoint}, and the pipeline would be at {hub().endpoint}.",
            why=f"Documents name the Hub that weights are fetched from, and {hubs_file()} has no name for this one.",
            hint=f"{hub_example(model.endpoint)} Or leave out `by_reference`.",
        )
    return name


def warn_of_access(source: ModelInfo, watcher: Watcher) -> None:
    """Warn that nodes need access to a model whose weights they fetch from its own repo."""
    if source.private or source.gated:
        state = "private" if source.private else "gated"
        watcher.note(f"warning: {source.id} is {state}: whoever serves a stage needs a token that can read it")
