"""Fetching one commit of a shard or pipeline into the cache, file by file, each checked before it counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import check_weight_header
from shardhub.errors import DigestMismatch, DiskFull, FormatError, NotFound, ShardhubError, UsageError
from shardhub.hub.assemble import NUM_AT_ONCE, AssembledFile
from shardhub.hub.cache import Cache
from shardhub.hub.download import Origin, RepoFile, fetch_blob
from shardhub.hub.hubs import named_hub
from shardhub.hub.neighbours import NOBODY, Neighbours, Turn
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.several import in_threads
from shardhub.hub.traffic import Place, Traffic
from shardhub.manifest import (
    MAX_CATALOGUE_BYTES,
    MAX_DOCUMENT_BYTES,
    Manifest,
    Stage,
    WeightFile,
    check_digest,
    decode_catalogue,
    decode_identified,
)
from shardhub.naming import (
    CATALOGUE_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    PROOF_FILE,
    RANGES_FILE,
    SIGNATURE_FILE,
    STAGE_FILE,
)
from shardhub.regular_files import read_file
from shardhub.shard import other_stage, read_shard
from shardhub.sizes import size_text
from shardhub.source_ranges import Assemblies, decode_ranges
from shardhub.splitting.shard_folder import MAX_PIPELINE_FILE_BYTES, is_pipeline_file
from shardhub.tensors import TensorSpec

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Share kept free beyond the computed size.
_SPARE_SHARE = (5, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """Progress of a fetch.

    Attributes:
        file: File being fetched.
        place: Where it comes from: a repo, or a node's address.
        done_bytes, total_bytes: Bytes of the weight files that were not cached.
    """

    repo: str
    file: str
    place: str
    done_bytes: int
    total_bytes: int


class Snapshot:
    """A commit being fetched into the cache: files in its hidden folder are complete and checked, others are missing.

    Args:
        repo: Repo and commit.
        cache: The cache.
        notice: Called with remarks for people.
        progress: Called after every megabyte.
        hubs: Makes the client of another Hub that has a shard's source, from its name.
        neighbours: Asked for weight files before the Hub is.
        traffic: Counts the bytes of weight files.
    """

    def __init__(
        self,
        repo: PinnedRepo,
        cache: Cache,
        *,
        notice: Callable[[str], None],
        progress: Callable[[FetchProgress], None],
        hubs: Callable[[str], HfApi] = named_hub,
        neighbours: Neighbours = NOBODY,
        traffic: Traffic | None = None,
    ) -> None:
        self._repo = repo
        self._hubs = hubs
        self._cache = cache
        self._folder = cache.partial_snapshot(repo.repo, repo.commit)
        self._notice = notice
        self._progress = progress
        self._neighbours = neighbours
        self._traffic = traffic or Traffic()

    def bring(self, digest: str | None) -> None:
        """Fetch what is missing.

        Args:
            digest: Stage digest that a manifest requires of the shard, if any.

        Raises:
            UsageError: The repo is neither a shard nor a pipeline.
            IntegrityError: The content differs from what was published.
            DiskFull: The disk is full.
            As `hub_failures`.
        """
        repo = self._repo
        if STAGE_FILE in repo.files:
            self._bring_shard(digest)
        elif MANIFEST_FILE in repo.files:
            self._bring_pipeline()
        else:
            raise UsageError(
                f"{repo.repo} is neither a shard nor a pipeline.",
                why=f"At the commit {repo.commit[:12]} it has neither {STAGE_FILE} nor {MANIFEST_FILE}.",
                hint=f"If it is a model, split it first: shardhub split {repo.repo} DIR --stages N",
            )

    def _bring_pipeline(self) -> None:
        repo = self._repo
        data = repo.read(MANIFEST_FILE, MAX_DOCUMENT_BYTES)
        manifest = decode_identified(Manifest, data, where=f"{repo.repo}/{MANIFEST_FILE}")
        for name in (CONFIG_FILE, *manifest.files):
            if not is_pipeline_file(name):
                raise FormatError(
                    f"The manifest of {repo.repo} names a file that a pipeline may not have: {name[:100]!r}.",
                    why="Only configuration, tokenizer and chat template belong to a pipeline's repo: neither code "
                    "nor weights.",
                    hint="It was not written by shardhub: do not use it.",
                )
        self._link(MANIFEST_FILE, data)
        if SIGNATURE_FILE in repo.files:
            self._document(SIGNATURE_FILE, MAX_DOCUMENT_BYTES, None)
        for name in dict.fromkeys((CONFIG_FILE, *manifest.files)):
            self._document(name, MAX_PIPELINE_FILE_BYTES, manifest.files.get(name))

    def _bring_shard(self, digest: str | None) -> None:
        repo = self._repo
        data = repo.read(STAGE_FILE, MAX_DOCUMENT_BYTES)
        stage = decode_identified(Stage, data, where=f"{repo.repo}/{STAGE_FILE}")
        if digest is not None and stage.digest != digest:
            raise other_stage(repo.repo, stage.digest, digest)
        self._link(STAGE_FILE, data)
        catalogue = self._document(CATALOGUE_FILE, MAX_CATALOGUE_BYTES, stage.catalogue_digest)
        tensors = decode_catalogue(catalogue, digest=stage.catalogue_digest, where=f"{repo.repo}/{CATALOGUE_FILE}")
        self._document(CONFIG_FILE, MAX_DOCUMENT_BYTES, None)
        if PROOF_FILE in repo.files:
            self._document(PROOF_FILE, MAX_DOCUMENT_BYTES, None)
        assemblies = Assemblies()
        if RANGES_FILE in repo.files:
            ranges = self._document(RANGES_FILE, MAX_CATALOGUE_BYTES, None)
            assemblies = decode_ranges(ranges, stage=stage, tensors=tensors, where=f"{repo.repo}/{RANGES_FILE}")
        read_shard(self._folder)
        faults = {
            file.name: fault
            for file in stage.weight_files
            if (file.name in repo.files or file.name not in assemblies.by_name)
            and (fault := _listed_fault(repo, file)) is not None
        }
        self._bring_weights(stage, tensors, assemblies, faults)

    def _bring_weights(
        self,
        stage: Stage,
        tensors: Mapping[str, TensorSpec],
        assemblies: Assemblies,
        faults: Mapping[str, ShardhubError],
    ) -> None:
        """Bring the weight files that are not cached.

        Args:
            stage, tensors: The shard's stage.json and tensors.json.
            assemblies: How weight files are put together from the source.
            faults: Why weight files cannot be taken from the shard's own repo, by name.
        """
        repo, cache = self._repo, self._cache
        absent = [file for file in stage.weight_files if not cache.has(file.sha256, file.size_bytes)]
        names = {file.name for file in absent}
        for file in stage.weight_files:
            if file.name not in names:
                # From another shard: the bytes are the same, but may not match this catalogue.
                check_weight_header(cache.blob(file.sha256), file, tensors)
                cache.link(self._folder, file.name, file.sha256)
                self._traffic.fetch(Place.CACHE, file.size_bytes)
        total_bytes = sum(file.size_bytes for file in absent)
        self._check_room(absent, total_bytes)
        if absent:
            self._neighbours.ask(absent)
        listed = {name for name in repo.files if name not in faults}
        source = self._source(stage, absent, assemblies, listed)
        for file in absent:
            if (fault := faults.get(file.name)) is None:
                continue
            if not self._neighbours.have(file) and (source is None or file.name not in assemblies.by_name):
                raise fault
            self._notice(f"warning: {fault.what} It is taken from elsewhere.")
        done_bytes, counting = 0, Lock()

        turns = self._neighbours.turns(absent)

        def fetch(_: WeightFile, go_on: Callable[[], None]) -> None:
            with turns.next(go_on) as turn:
                fetch_file(turn, go_on)

        def fetch_file(turn: Turn, go_on: Callable[[], None]) -> None:
            file, place = turn.file, repo.repo

            def begin(origin: Origin) -> None:
                nonlocal place
                place = origin.place
                if origin.kind is not Place.NEIGHBOUR:
                    turn.leave()

            def count(received: int) -> None:
                nonlocal done_bytes
                go_on()
                turn.count(received)
                with counting:
                    done_bytes += received
                    self._progress(
                        FetchProgress(
                            repo=repo.repo, file=file.name, place=place, done_bytes=done_bytes, total_bytes=total_bytes
                        )
                    )

            origins = [*turn.origins]
            if file.name in listed:
                origins.append(RepoFile(repo, file.name))
            if source is not None and file.name in assemblies.by_name:
                origins.append(AssembledFile(file.name, assemblies.by_name[file.name], source, repo))
            if not origins:
                raise faults.get(file.name) or NotFound(
                    f"{repo.repo}/{file.name} cannot be fetched.", why="The neighbour that had it is gone."
                )
            fetch_blob(
                origins,
                sha256=file.sha256,
                cache=cache,
                check=lambda path: check_weight_header(path, file, tensors),
                notice=self._notice,
                progress=count,
                began=begin,
                traffic=self._traffic,
            )
            cache.link(self._folder, file.name, file.sha256)

        # Copies are few requests for large files, and one of them fills the line.
        for _ in in_threads(fetch, absent, num_threads=1 if source is None else NUM_AT_ONCE):
            pass

    def _source(
        self, stage: Stage, absent: Sequence[WeightFile], assemblies: Assemblies, listed: Collection[str]
    ) -> PinnedRepo | None:
        """The source's repo, if weight files may be assembled from it.

        Args:
            stage: The shard's stage.json.
            absent: Weight files that are not cached.
            assemblies: How weight files are put together from the source.
            listed: Files that can be taken from the shard's own repo.

        Raises:
            UsageError: It is on a Hub that is not known here, and no other place has all of the files.
        """
        place = stage.source
        if place.repo is None or place.commit is None or not any(file.name in assemblies.by_name for file in absent):
            return None
        is_elsewhere = all(file.name in listed or self._neighbours.have(file) for file in absent)
        try:
            api = None if assemblies.hub is None else self._hubs(assemblies.hub)
        except UsageError:
            if is_elsewhere:
                return None
            raise
        source = self._repo.beside(place.repo, place.commit, api=api)
        if not is_elsewhere:
            source.files  # noqa: B018 - listed once, before several threads need it
        return source

    def _document(self, name: str, limit_bytes: int, sha256: str | None) -> bytes:
        """Fetch a small file, or take it from the cache if its sha256 is known."""
        repo = self._repo
        known = sha256 or repo.file(name).sha256
        if known is not None and self._cache.has(known, repo.file(name).size_bytes):
            data = read_file(self._cache.blob(known))
        else:
            data = repo.read(name, limit_bytes)
        if sha256 is not None:
            check_digest(data, sha256, where=f"{repo.repo}/{name}")
        self._link(name, data)
        return data

    def _link(self, name: str, data: bytes) -> None:
        self._cache.link(self._folder, name, self._cache.put(data))

    def _check_room(self, absent: Sequence[WeightFile], total: int) -> None:
        have = sum(
            path.stat().st_size
            for file in absent
            if (path := self._cache.partial(file.sha256, is_locked=True)).is_file()
        )
        need = max(0, total - have) * (_SPARE_SHARE[0] + _SPARE_SHARE[1]) // _SPARE_SHARE[1]
        free = self._cache.free_bytes()
        if need > free:
            raise DiskFull(
                f"{self._cache.root} does not have enough free space for {self._repo.repo}.",
                why=f"{size_text(need)} is needed, and {size_text(free)} is free.",
                hint="Free some space with `shardhub rm REPO` or `shardhub prune`, or use another disk: `cache_dir` "
                "DIR.",
            )


def _listed_fault(repo: PinnedRepo, file: WeightFile) -> ShardhubError | None:
    """Why a repo cannot give a file of the stage, as far as its listing tells before anything is fetched; else None."""
    try:
        listed = repo.file(file.name)
    except NotFound as error:
        return error
    sha256 = listed.sha256 or file.sha256
    if (listed.size_bytes, sha256) == (file.size_bytes, file.sha256):
        return None
    return DigestMismatch(
        f"{repo.repo}/{file.name} differs from the file that {STAGE_FILE} names.",
        why=f"It has {listed.size_bytes} bytes and the sha256 {sha256[:16]}..., but {STAGE_FILE} says "
        f"{file.size_bytes} and {file.sha256[:16]}....",
        hint="The shard was changed after it was published: tell its publisher.",
    )
