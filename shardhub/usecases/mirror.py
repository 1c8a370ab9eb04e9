"""Bringing a repo from another Hub to the environment's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.hubs import source_api
from shardhub.hub.mirror import Mirrored
from shardhub.hub.mirror import mirror as bring
from shardhub.hub.mirror_target import prepare_target
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import PUBLIC_ENDPOINT, Reference, parse_source
from shardhub.setting_checks import check_settings
from shardhub.usecases.forwarding import bytes_of
from shardhub.usecases.places import hub
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """Where a repo comes from and goes to.

    Attributes:
        source_endpoint: URL of the Hub it is on; None takes the Hub of its URL, or the public one.
        name: Repo to bring it to; None takes its own name, in the token's namespace where its own is not the token's.
        private: Whether only its owner can read the repo; None makes a new one as the source is.
        replace: Replace the files of a repo that is not a mirror of this one; the old commits are kept under a tag.
        cache_dir: The cache's folder; None takes the user's.
    """

    source_endpoint: str | None = None
    name: str | None = None
    private: bool | None = None
    replace: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def mirror(repo: str, settings: MirrorSettings = MirrorSettings(), watcher: Watcher = SILENT) -> Mirrored:
    """Bring a repo's files at one revision to the environment's Hub; a killed run is resumed by another.

    Args:
        repo: `ORG/NAME[@REVISION]`, or its URL.
        settings: Where it comes from and goes to.
        watcher: Notified of waits and of bytes.

    Raises:
        UsageError: The repo is not named, both Hubs are the same, or everyone could read what is private.
        Conflict: The target holds something else, and `replace` is false.
        NotFound, AccessError: The repo cannot be read, or the target cannot be written.
        DigestMismatch: The bytes were wrong twice.
        DiskFull: There is no room for its largest file.
        HubUnreachable, HubRefused: A Hub does not answer, or refuses.
    """
    calls = HubCalls(api=hub(), notice=watcher.note)
    place, endpoint = parse_source(repo, settings.source_endpoint)
    if not isinstance(place, Reference):
        raise UsageError(f"{str(repo)[:120]!r} is not the name of a repo.", hint="Give ORG/NAME, or its URL.")
    api = source_api(endpoint or PUBLIC_ENDPOINT)
    if api.endpoint == calls.api.endpoint:
        raise UsageError(
            f"{place.repo} is to be brought from {api.endpoint} to {api.endpoint}.",
            hint="Set HF_ENDPOINT to your own Hub, and name another as the source with the repo's URL, or "
            "`source_endpoint` URL.",
        )
    account = calls.writer()
    patience = Patience(notice=watcher.note)
    commit = place.commit or find_commit(api, place.repo, place.revision, patience)
    source = PinnedRepo(api, place.repo, commit, patience, has_folders=True)
    num_files = len(source.files)  # asked for before anything is made
    info = HubCalls(api=api, notice=watcher.note).run(
        lambda: api.model_info(place.repo), what=f"looking at {place.repo}", repo=place.repo
    )
    namespace, _, name = place.repo.partition("/")
    target = settings.name or f"{namespace if namespace in account.namespaces else account.name}/{name}"
    prepare_target(source, info, calls, target, private=settings.private, replace=settings.replace)
    watcher.note(f"bringing {num_files} files of {place.repo} at {commit[:12]} to {target} at {calls.api.endpoint}")
    cache = Cache(Cache(settings.cache_dir).root / "mirror")
    return bring(source, calls, target, cache, patience=patience, progress=bytes_of("mirroring", watcher))
