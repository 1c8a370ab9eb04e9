"""Letting nodes fetch a published pipeline's weights from the model that they were made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shardhub.errors import UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.hubs import source_api
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.refer import Referral, Referred, find_published
from shardhub.hub.reference import parse_reference
from shardhub.usecases.pipeline_source import open_source, source_endpoint, warn_of_access
from shardhub.usecases.places import hub
from shardhub.usecases.push import push_progress
from shardhub.usecases.signing import signer_of
from shardhub.usecases.watcher import SILENT, Watcher


class Refer:
    """The second places of a pipeline's weights, decided but not yet compared or written.

    Args:
        pipeline: Its repo.
        endpoint: URL of the Hub that the model is on; None takes the one that the manifest names, or HF_ENDPOINT's.
        drop_copies: Whether the shards' repos no longer hold the weight files that nodes can fetch from the source.
        sign_key: File of the key that signs the changed manifest.
        cache_dir: The cache's folder; None takes the user's.
        watcher: Notified of the current activity.

    Attributes:
        referral: What will be compared, written and dropped.
        source: The model's repo.
        endpoint: URL of the pipeline's Hub.

    Raises:
        UsageError: It is not a pipeline, or its source does not have the shards' bytes.
        AccessError: The token may not write there.
        As `find_published` and `open_source`.
    """

    def __init__(
        self,
        pipeline: str,
        *,
        endpoint: str | None = None,
        drop_copies: bool = False,
        sign_key: str | Path | None = None,
        cache_dir: str | Path | None = None,
        watcher: Watcher = SILENT,
    ) -> None:
        place = parse_reference(pipeline)
        if isinstance(place, Path):
            raise UsageError(
                f"{pipeline} is a folder.", why="Only pipelines on a Hub name their source.", hint="Give ORG/NAME."
            )
        signer = signer_of(sign_key)
        self._watcher = watcher
        self._calls = HubCalls(api=hub(), notice=watcher.note)
        self._calls.writer()
        published = find_published(self._calls, place.repo)
        at = source_endpoint(published.manifest, endpoint)
        source = open_source(published.manifest, at, watcher)
        self.referral = Referral(
            published,
            source.checkpoint,
            source.stored_names,
            hub=source.hub,
            drop_copies=drop_copies,
            signer=signer,
        )
        self.source = published.repo
        self.endpoint: str = self._calls.api.endpoint
        self._journal = PushJournal(Cache(cache_dir).root / "push")
        calls = replace(self._calls, api=source_api(at))
        info = calls.run(
            lambda: calls.api.model_info(published.repo), what=f"looking at {published.repo}", repo=published.repo
        )
        warn_of_access(info, watcher)

    def run(self) -> Referred:
        """Compare every byte, then write the shards' repos, then the manifest's.

        Raises:
            As `Referral.run`.
        """
        return self.referral.run(self._calls, self._journal, push_progress(self._watcher))
