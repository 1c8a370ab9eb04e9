"""Copying tensors into weight files: byte ranges as they are, sha256 in the same pass, memory flat."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.header import ByteSource, StoredTensor
from shardhub.errors import DiskFull, WeightFileError
from shardhub.splitting.weight_layout import FileLayout

# One buffer is hashed while the others are written and filled. Together they stay within a processor's cache.
_BUFFER_BYTES = 1 << 20
_NUM_BUFFERS = 3
# Large models come in hundreds of files, and macOS gives a process 256; a layer is in one to three of them.
_MAX_OPEN = 8
# No space, quota spent, or a file larger than the file system or the process may write.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Files the disk is still taking while the next one is copied; with fewer it stands still between two files.
_MAX_SYNCING = 3
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Copier:
    """Writes weight files out of a checkpoint; a context manager that holds the checkpoint's files open."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._sources: OrderedDict[str, ByteSource] = OrderedDict()
        self._buffers = [memoryview(bytearray(_BUFFER_BYTES)) for _ in range(_NUM_BUFFERS)]
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._syncing: deque[Future[None]] = deque()

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown()
        self._syncer.shutdown()
        for source in self._sources.values():
            source.close()

    def write(
        self,
        layout: FileLayout,
        targets: Sequence[Path],
        progress: Callable[[int], None],
        synced: Callable[[str], None],
    ) -> None:
        """Write one weight file to every target at once: its bytes are read and hashed once.

        The disk takes the file in another thread while the next one is read; `wait` says when all are there.

        Args:
            layout: What to write.
            targets: New files; where there are none, the sha256 is computed all the same.
            progress: Told the bytes done since the last call.
            synced: Told the sha256 in that other thread, file after file, when the targets are on disk.

        Raises:
            WeightFileError: The checkpoint's files changed or cannot be read.
            DiskFull: No room, for this file or one before; this one's targets are removed again.
        """
        descriptors: list[int] = []
        try:
            descriptors.extend(os.open(target, _NEW_FILE, 0o644) for target in targets)
            digest = self._pump(layout, descriptors, progress)
            self.wait(_MAX_SYNCING)
        except BaseException as error:
            _abandon(descriptors, targets)
            if isinstance(error, OSError) and error.errno in FULL:
                raise _disk_full(targets[0].parent, layout, error) from error
            raise
        self._syncing.append(self._syncer.submit(_sync, layout, descriptors, targets, digest, synced))

    def wait(self, num_left: int = 0) -> None:
        """Return when all files written so far, but for the last few, are on disk.

        Raises:
            DiskFull: The disk had no room for one of them after all.
        """
        while len(self._syncing) > num_left:
            self._syncing.popleft().result()

    def _pump(self, layout: FileLayout, descriptors: Sequence[int], progress: Callable[[int], None]) -> str:
        digest = hashlib.sha256()
        hashing: list[Future[None] | None] = [None] * _NUM_BUFFERS
        for turn, filled in enumerate(self._fill(layout, hashing)):
            # Hashing lets go of the interpreter, so it runs beside the write and the next read.
            hashing[turn % _NUM_BUFFERS] = self._hasher.submit(digest.update, filled)
            for descriptor in descriptors:
                _write_all(descriptor, filled)
            progress(len(filled))
        for future in hashing:
            if future is not None:
                future.result()
        return digest.hexdigest()

    def _fill(self, layout: FileLayout, hashing: Sequence[Future[None] | None]) -> Iterator[memoryview]:
        """The file's bytes, buffer after buffer; a buffer is filled again only when it has been hashed."""
        turn, used = 0, len(layout.header)
        buffer = self._buffers[0]
        head = memoryview(layout.header)
        while len(head) > len(buffer):
            buffer[:] = head[: len(buffer)]
            head, used = head[len(buffer) :], used - len(buffer)
            yield buffer
            turn, buffer = self._next_buffer(turn, hashing)
        buffer[: len(head)] = head
        for tensor, ahead in zip(layout.stored, _runs(layout.stored), strict=True):
            source = self._source(tensor.file)
            if ahead is not None:
                source.read_ahead(tensor.start, ahead)
            at = tensor.start
            while at < tensor.stop:
                if used == len(buffer):
                    yield buffer
                    turn, buffer = self._next_buffer(turn, hashing)
                    used = 0
                count = min(tensor.stop - at, len(buffer) - used)
                source.read_into(at, buffer[used : used + count])
                at, used = at + count, used + count
        yield buffer[:used]

    def _next_buffer(self, turn: int, hashing: Sequence[Future[None] | None]) -> tuple[int, memoryview]:
        turn += 1
        if (future := hashing[turn % _NUM_BUFFERS]) is not None:
            future.result()
        return turn, self._buffers[turn % _NUM_BUFFERS]

    def _source(self, name: str) -> ByteSource:
        if name in self._sources:
            self._sources.move_to_end(name)
            return self._sources[name]
        source = self._checkpoint.open_file(name)
        header = self._checkpoint.files[name]
        if (source.size_bytes, source.version) != (header.size_bytes, header.version):
            source.close()
            raise WeightFileError(
                f"{source.name} changed since its header was read.",
                why=f"It had {header.size_bytes} bytes, now it has {source.size_bytes}.",
                hint="Wait until nothing writes to the model, then start again.",
            )
        self._sources[name] = source
        if len(self._sources) > _MAX_OPEN:
            self._sources.popitem(last=False)[1].close()
        return source


def _runs(stored: Sequence[StoredTensor]) -> list[int | None]:
    """For each tensor that does not follow the one before in its file: where the run of those that follow it ends."""
    stops: list[int | None] = [None] * len(stored)
    first = 0
    for index, tensor in enumerate(stored):
        before = stored[index - 1] if index else None
        if before is None or (before.file, before.stop) != (tensor.file, tensor.start):
            first = index
        stops[first] = tensor.stop
    return stops


def _disk_full(folder: Path, layout: FileLayout, cause: OSError) -> DiskFull:
    """The error for a disk that filled up while `layout` was written into `folder`."""
    status = os.statvfs(folder)
    return DiskFull(
        f"The disk is full: {layout.name} could not be written.",
        why=f"{cause.strerror}; the file needs {layout.size_bytes / 1e9:.2f} GB, "
        f"{status.f_bavail * status.f_frsize / 1e9:.2f} GB are free at {folder.parent}.",
        hint="Make room and run the same command again: it goes on where it stopped. What is finished is kept in "
        f"{folder.name}, which nothing takes for a shard.",
    )


def _sync(
    layout: FileLayout, descriptors: Sequence[int], targets: Sequence[Path], digest: str, synced: Callable[[str], None]
) -> None:
    try:
        for descriptor in descriptors:
            os.fsync(descriptor)
        synced(digest)
    except OSError as error:
        if error.errno in FULL:
            raise _disk_full(targets[0].parent, layout, error) from error
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _abandon(descriptors: Sequence[int], targets: Sequence[Path]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    for target in targets[: len(descriptors)]:
        target.unlink(missing_ok=True)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
