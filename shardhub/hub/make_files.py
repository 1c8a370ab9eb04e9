"""Making the weight files that no source has, because their tensors are computed, in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.hub.cache import Cache
from shardhub.hub.gather import check_room, cut_journal, here_of
from shardhub.hub.push_journal import PushJournal
from shardhub.splitting.contents import ComputedTensors
from shardhub.splitting.file_order import FileDigests
from shardhub.splitting.weight_copy import Copier
from shardhub.splitting.weight_layout import FileLayout


def make_files(
    checkpoint: Checkpoint,
    computed: ComputedTensors | None,
    layouts: Mapping[str, FileLayout],
    cache: Cache,
    progress: Callable[[str, int], None],
) -> FileDigests:
    """Write weight files into the cache; those that it has are kept.

    Args:
        checkpoint: The model.
        computed: Its tensors that are computed.
        layouts: The weight files by their keys.
        cache: Where they are kept.
        progress: Called with a file's name and the bytes done since the last call.

    Raises:
        DiskFull: The disk has no room for them.
        WeightFileError: The model changed meanwhile.
    """
    cache.prepare()
    journal = cut_journal(cache)
    here = here_of({key: layout.size_bytes for key, layout in layouts.items()}, journal, cache)
    absent = {key: layout for key, layout in layouts.items() if key not in here}
    check_room(cache, checkpoint.where, {key: layout.size_bytes for key, layout in absent.items()})
    with cache.writing(), Copier(checkpoint, computed) as copier:
        for key, layout in absent.items():
            made = cache.partial(key, is_locked=False)
            copier.write(layout, [made], partial(progress, layout.name), partial(_keep, cache, journal, key, made))
        copier.wait()
    return FileDigests(digests={key: journal.digests[key] for key in layouts})


def _keep(cache: Cache, journal: PushJournal, key: str, made: Path, sha256: str) -> None:
    made.replace(cache.blob(sha256))
    journal.add(key, sha256)
