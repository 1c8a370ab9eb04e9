"""What is added to the Hub's errors about a name: where else it might be, and what it stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.errors import AccessError, HubUnreachable, NotFound
from shardhub.hub.reference import PUBLIC_ENDPOINT, Reference
from shardhub.manifest import RepoLocation
from shardhub.shard import Pipeline


@contextmanager
def perhaps_elsewhere(endpoint: str | None) -> Iterator[None]:
    """Add to the Hub's NotFound error how to name a model that is on another Hub than the environment's."""
    try:
        yield
    except (NotFound, AccessError) as error:
        own = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        if endpoint is not None or not own:
            raise
        hint = (
            f"HF_ENDPOINT names {own}. If the model is on another Hub, give its URL there, such as "
            f"{PUBLIC_ENDPOINT}/ORG/NAME, or `source_endpoint` URL."
        )
        raise type(error)(error.what, why=error.why, hint=f"{hint} {error.hint}".strip()) from error


@contextmanager
def naming_the_stage(pipeline: Pipeline, index: int, location: RepoLocation) -> Iterator[None]:
    """Add to the error for a shard's repo that does not exist which stage it holds."""
    try:
        yield
    except NotFound as error:
        raise NotFound(
            f"Stage {index} of {pipeline.manifest.name} was not found: {error.what}",
            why=f"The manifest names {location.repo} at {location.commit[:12]}. {error.why}",
            hint="Ask the pipeline's publisher, or split the model again.",
        ) from error


@contextmanager
def no_folder(reference: Reference) -> Iterator[None]:
    """Add to the Hub's NotFound error that no such folder exists either."""
    try:
        yield
    except (NotFound, HubUnreachable) as error:
        why = f"The folder {reference} does not exist either. {error.why}".strip()
        raise type(error)(error.what, why=why, hint=error.hint) from error
