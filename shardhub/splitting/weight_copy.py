"""Writing tensors into weight files: byte ranges copied unchanged and hashed in the same pass, in constant memory."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint, check_unchanged
from shardhub.checkpoint.header import ByteSource, StoredTensor
from shardhub.checkpoint.nonfinite import first_nonfinite
from shardhub.errors import DiskFull, NonFiniteWeights, WeightFileError
from shardhub.sizes import size_text
from shardhub.splitting.contents import ComputedTensors
from shardhub.splitting.weight_layout import ComputedTensor, FileLayout
from shardhub.tensors import DTYPE_SIZES

# One buffer is hashed while the others are written and filled. Together they fit a processor's cache.
_BUFFER_BYTES = 1 << 20
_NUM_BUFFERS = 3
# Large models come in hundreds of files, and macOS allows a process 256 open files; a layer is in one to three of them.
_MAX_OPEN = 8
# No space, quota exhausted, or a file larger than the file system or the process may write.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Files still being synced while the next one is copied; with fewer, the disk is idle between two files.
_MAX_SYNCING = 3
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Copier:
    """Writes weight files from a checkpoint; a context manager that keeps the checkpoint's files open.

    Args:
        checkpoint: The source of the bytes.
        computed: The tensors that are not stored there.
        check_weights: Whether to check everything written for NaN and infinity.
    """

    def __init__(
        self, checkpoint: Checkpoint, computed: ComputedTensors | None = None, *, check_weights: bool = False
    ) -> None:
        self._checkpoint = checkpoint
        self._computed = computed
        self._check_weights = check_weights
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

        The file is synced to disk in another thread while the next one is read; `wait` returns when all are on disk.

        Args:
            layout: What to write.
            targets: New files to write; without any, only the sha256 is computed.
            progress: Called with the bytes done since the last call.
            synced: Called with the sha256 in that other thread, file after file, when the targets are on disk.

        Raises:
            WeightFileError: The checkpoint's files changed or cannot be read.
            NonFiniteWeights: A weight is NaN or infinite, and `check_weights` is set.
            DiskFull: There is no room for this file or one before; the targets of this one are removed.
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
        """Return when all files written so far, except the last `num_left`, are on disk.

        Raises:
            DiskFull: The disk had no room for one of them after all.
        """
        while len(self._syncing) > num_left:
            self._syncing.popleft().result()

    def _pump(self, layout: FileLayout, descriptors: Sequence[int], progress: Callable[[int], None]) -> str:
        digest = hashlib.sha256()
        hashing: list[Future[None] | None] = [None] * _NUM_BUFFERS
        for turn, filled in enumerate(self._fill(layout, hashing)):
            # Hashing releases the GIL, so it runs in parallel with the write and the next read.
            hashing[turn % _NUM_BUFFERS] = self._hasher.submit(digest.update, filled)
            for descriptor in descriptors:
                _write_all(descriptor, filled)
            progress(len(filled))
        for future in hashing:
            if future is not None:
                future.result()
        return digest.hexdigest()

    def _fill(self, layout: FileLayout, hashing: Sequence[Future[None] | None]) -> Iterator[memoryview]:
        """The file's bytes, buffer after buffer; a buffer is refilled only after it has been hashed."""
        turn, used = 0, len(layout.header)
        buffer = self._buffers[0]
        head = memoryview(layout.header)
        while len(head) > len(buffer):
            buffer[:] = head[: len(buffer)]
            head, used = head[len(buffer) :], used - len(buffer)
            yield buffer
            turn, buffer = self._next_buffer(turn, hashing)
        buffer[: len(head)] = head
        computed = self._compute(layout)
        for name, tensor, ahead in zip(layout.tensors, layout.stored, _runs(layout.stored), strict=True):
            read = self._reader(tensor, ahead) if isinstance(tensor, StoredTensor) else _from(next(computed))
            at, size = 0, tensor.spec.size_bytes
            while at < size:
                if used == len(buffer):
                    yield buffer
                    turn, buffer = self._next_buffer(turn, hashing)
                    used = 0
                count = min(size - at, len(buffer) - used)
                piece = buffer[used : used + count]
                read(at, piece)
                if self._check_weights:
                    # Tensors are ordered by dtype size and buffers are multiples of it, so no element is split.
                    check_finite(name, tensor, at, piece)
                at, used = at + count, used + count
        yield buffer[:used]

    def _compute(self, layout: FileLayout) -> Iterator[memoryview]:
        names = [tensor.name for tensor in layout.stored if isinstance(tensor, ComputedTensor)]
        return iter(()) if self._computed is None else self._computed.read(self._checkpoint, names)

    def _reader(self, tensor: StoredTensor, ahead: int | None) -> Callable[[int, memoryview], None]:
        source = self._source(tensor.file)
        if ahead is not None:
            source.read_ahead(tensor.start, ahead)
        return lambda at, piece: source.read_into(tensor.start + at, piece)

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
        try:
            check_unchanged(source, header)
        except WeightFileError:
            source.close()
            raise
        self._sources[name] = source
        if len(self._sources) > _MAX_OPEN:
            self._sources.popitem(last=False)[1].close()
        return source


def _from(data: memoryview) -> Callable[[int, memoryview], None]:
    def read(at: int, piece: memoryview) -> None:
        piece[:] = data[at : at + len(piece)]

    return read


def check_finite(name: str, tensor: StoredTensor | ComputedTensor, at: int, piece: memoryview) -> None:
    """Check a piece of a tensor for NaN and infinity.

    Args:
        name: The tensor's name, for the message.
        tensor: The tensor.
        at: Where the piece starts, in bytes of the tensor.
        piece: Whole elements of it.

    Raises:
        NonFiniteWeights: A value is NaN or infinite.
    """
    spec = tensor.spec
    offset = first_nonfinite(spec.dtype, piece)
    if offset is None:
        return
    flat = offset + at // DTYPE_SIZES[spec.dtype]
    index = []
    for length in reversed(spec.shape):
        flat, rest = divmod(flat, length)
        index.append(rest)
    origin = f"in {tensor.file}" if isinstance(tensor, StoredTensor) else "computed from the checkpoint"
    raise NonFiniteWeights(
        f"The tensor {name} contains a value that is not finite.",
        why=f"The first such value is at {index[::-1]} of {spec.dtype} {list(spec.shape)}, {origin}.",
        hint="Download the model again. If that does not help, the publisher's file is broken.",
    )


def _runs(stored: Sequence[StoredTensor | ComputedTensor]) -> list[int | None]:
    """For each tensor that starts a contiguous run in its file, where that run ends; None for the others."""
    stops: list[int | None] = [None] * len(stored)
    first = 0
    before: StoredTensor | ComputedTensor | None = None
    for index, tensor in enumerate(stored):
        if isinstance(tensor, StoredTensor):
            if not isinstance(before, StoredTensor) or (before.file, before.stop) != (tensor.file, tensor.start):
                first = index
            stops[first] = tensor.stop
        before = tensor
    return stops


def _disk_full(folder: Path, layout: FileLayout, cause: OSError) -> DiskFull:
    """The error for a disk that filled up while `layout` was being written into `folder`."""
    status = os.statvfs(folder)
    return DiskFull(
        f"The disk is full: {layout.name} could not be written.",
        why=f"{cause.strerror}; the file needs {size_text(layout.size_bytes)}, and "
        f"{size_text(status.f_bavail * status.f_frsize)} is free at {folder.parent}.",
        hint="Free some space and run the same command again: it continues where it stopped. Finished files are kept "
        f"in {folder.name}, which is not used as a shard until it is complete.",
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
