"""Putting weight files together in the cache before anybody knows their sha256."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock

from shardhub.errors import Conflict, DiskFull
from shardhub.hub.assemble import NUM_AT_ONCE, AssembledFile
from shardhub.hub.cache import Cache
from shardhub.hub.download import fetch_unknown
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.several import in_threads
from shardhub.hub.snapshot import FetchProgress
from shardhub.hub.traffic import Traffic
from shardhub.locks import locked_at_once
from shardhub.sizes import size_text
from shardhub.splitting.file_order import FileDigests, OrderedFile

# Share kept free beyond the computed size.
_SPARE_SHARE = (5, 100)


def cut_journal(cache: Cache) -> PushJournal:
    """sha256 of the weight files that were put together here, by key."""
    return PushJournal(cache.root / "cut")


def gather(
    source: PinnedRepo,
    files: Sequence[OrderedFile],
    cache: Cache,
    *,
    notice: Callable[[str], None],
    progress: Callable[[FetchProgress], None],
    traffic: Traffic | None = None,
) -> FileDigests:
    """Read the ranges of weight files from their source into the cache.

    Files that the cache has are not read again, and a file that an earlier run began is continued.

    Args:
        source: The model.
        files: The files; their ranges lie in the source.
        cache: Where they are kept.
        notice: Called with what delays it.
        progress: Called after every megabyte.
        traffic: Counts the bytes that come.

    Raises:
        FormatError: A range lies beyond the files of the source.
        Conflict: Files are being deleted from the cache.
        DiskFull: The disk has no room for them.
        As `ByteSource.read_into`.
    """
    cache.prepare()
    journal = cut_journal(cache)
    sizes = {file.key: file.assembly.size_bytes for file in files}
    here = here_of(sizes, journal, cache)
    absent = [file for file in {file.key: file for file in files}.values() if file.key not in here]
    total_bytes = sum(sizes[file.key] for file in absent)
    check_room(cache, source.repo, {file.key: sizes[file.key] for file in absent})
    done_bytes, counting = 0, Lock()

    def fetch(file: OrderedFile, go_on: Callable[[], None]) -> None:
        def count(received: int) -> None:
            nonlocal done_bytes
            go_on()
            with counting:
                done_bytes += received
                progress(
                    FetchProgress(
                        repo=source.repo,
                        file=file.name,
                        place=source.repo,
                        done_bytes=done_bytes,
                        total_bytes=total_bytes,
                    )
                )

        origin = AssembledFile(file.name, file.assembly, source, source)
        sha256 = fetch_unknown(origin, key=file.key, cache=cache, notice=notice, progress=count, traffic=traffic)
        with counting:
            journal.add(file.key, sha256)

    with locked_at_once(cache.use_lock, shared=True) as is_free:
        if not is_free:
            raise Conflict(
                f"Another process is deleting files from the cache {cache.root}.",
                hint="Try again once it has finished.",
            )
        if absent:
            source.files  # noqa: B018 - listed once, before several threads need it
        for _ in in_threads(fetch, absent, num_threads=NUM_AT_ONCE):
            pass
    return FileDigests(digests={file.key: journal.digests[file.key] for file in files})


def here_of(sizes: Mapping[str, int], journal: PushJournal, cache: Cache) -> set[str]:
    """The keys of the files that the cache has, of files with these sizes in bytes."""
    return {key for key, size in sizes.items() if key in journal.digests and cache.has(journal.digests[key], size)}


def check_room(cache: Cache, model: str, sizes: Mapping[str, int]) -> None:
    """Check that the disk has room for weight files, of which some may have begun.

    Args:
        cache: Where they are kept.
        model: The model, for the message.
        sizes: Their sizes in bytes, by key.

    Raises:
        DiskFull: It has not.
    """
    begun = sum(path.stat().st_size for key in sizes if (path := cache.partial(key, is_locked=True)).is_file())
    need = max(0, sum(sizes.values()) - begun) * (_SPARE_SHARE[0] + _SPARE_SHARE[1]) // _SPARE_SHARE[1]
    if need > (free := cache.free_bytes()):
        raise DiskFull(
            f"{cache.root} does not have enough free space for layers of {model}.",
            why=f"{size_text(need)} is needed, and {size_text(free)} is free.",
            hint="Free some space with `shardhub rm REPO` or `shardhub prune`.",
        )
