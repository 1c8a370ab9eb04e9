"""LFS uploads in progress: parts of a file, each written to its place in one temporary file.

The whole is checked against its sha256 before it becomes a blob, whatever the order of its parts. Parts that arrive in
order, as huggingface_hub sends them, are hashed on arrival; the rest (after a restart, or if a part came twice) is read
again at the end.

There is one writer at a time: a newer one fences the older (a client that retries has given up the first try, though
its bytes may still arrive), and finishing fences all, so that no writer can change a file that has become a blob.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.localhub.refusals import Refusal, bad_request
from shardhub.localhub.store import BlobStore

# A lost connection costs at most one part; the client's read timeout of 10 s must cover syncing one to disk.
PART_BYTES = 64 << 20
# Abandoned uploads are kept as long as their signed URLs are valid.
UPLOAD_LIFETIME_S = 24 * 3600.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload, as identified by its signed URLs.

    Attributes:
        repo: Row id of the target repo.
        sha256, size_bytes: Digest and size that the whole file must have.
        nonce: Distinguishes two uploads of the same file.
    """

    repo: int
    sha256: str
    size_bytes: int
    nonce: str

    @property
    def num_parts(self) -> int:
        """Number of parts; a file up to `PART_BYTES` has one."""
        return max(1, -(-self.size_bytes // PART_BYTES))

    def part_bytes(self, part: int) -> int:
        """Size of a part, numbered from 1.

        Raises:
            Refusal: 400, there is no such part.
        """
        if not 1 <= part <= self.num_parts:
            raise bad_request(f"Part {part} does not exist: the upload has {self.num_parts} parts.")
        return min(PART_BYTES, self.size_bytes - (part - 1) * PART_BYTES)

    def etag(self, part: int) -> str:
        """The ETag the client receives for a part, and sends back when it completes the upload."""
        return f'"{self.nonce}-{part}"'

    @property
    def file_name(self) -> str:
        """Name of the temporary file."""
        return f"{self.repo}-{self.sha256[:16]}-{self.nonce}"


@dataclass(slots=True)
class _State:
    """State of an upload in this process.

    Attributes:
        digest, num_hashed: sha256 so far, of the file's first `num_hashed` bytes.
        writer: The only writer that may write, if any.
        done: Whether the upload became a blob or was discarded.
        verified: Whether the upload became a blob.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    num_hashed: int = 0
    writer: PartWriter | None = None
    done: bool = False
    verified: bool = False


class Uploads:
    """The uploads of one Hub.

    Args:
        folder: The Hub's data folder.
        store: Store for finished files.
    """

    def __init__(self, folder: Path, store: BlobStore) -> None:
        self._folder = folder / "uploads"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = store
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    def write_part(self, upload: Upload, part: int) -> PartWriter:
        """Start writing a part, which fences any earlier writer of this upload.

        Raises:
            Refusal: 400 no such part; 409 the upload is finished; 507 no room.
        """
        num_bytes = upload.part_bytes(part)
        self._store.check_room(num_bytes)
        state = self._state(upload)
        with state.lock:
            if state.done:
                raise Refusal(409, "This upload is finished.")
            return PartWriter(self._path(upload), state, (part - 1) * PART_BYTES, num_bytes)

    def finish(self, upload: Upload) -> None:
        """Check the whole file and make it a blob; a second call waits for the first and changes nothing.

        Raises:
            Refusal: 400, parts are missing or the bytes do not match the digest; the upload is then discarded.
        """
        state = self._state(upload)
        path = self._path(upload)
        with state.lock:
            if state.verified:
                return
            try:
                # An existing blob with this digest proves nothing: the caller must have sent its bytes.
                if state.done or not path.exists():
                    raise bad_request("Nothing was uploaded, or it was discarded: upload the file again.")
                state.writer = None
                _check_whole(path, upload, state)
                self._store.adopt(path, upload.sha256)
                state.verified = True
            finally:
                state.done = True
                path.unlink(missing_ok=True)
                self._forget(upload, state)

    def sweep(self) -> None:
        """Delete abandoned uploads, whose URLs are no longer valid."""
        now = time.time()
        for folder in (self._folder, self._store.temporary):
            for file in folder.iterdir():
                if now - _modified(file) >= UPLOAD_LIFETIME_S:
                    file.unlink(missing_ok=True)
                    with self._lock:
                        self._states.pop(file.name, None)

    def _path(self, upload: Upload) -> Path:
        # An upload of one part is retried from its start, so its file need not outlive this process.
        return (self._folder if upload.num_parts > 1 else self._store.temporary) / upload.file_name

    def _state(self, upload: Upload) -> _State:
        with self._lock:
            return self._states.setdefault(upload.file_name, _State())

    def _forget(self, upload: Upload, state: _State) -> None:
        with self._lock:
            if self._states.get(upload.file_name) is state:
                del self._states[upload.file_name]


class PartWriter:
    """Writes one part to its place; it may be closed or abandoned, as the next writer fences it."""

    def __init__(self, path: Path, state: _State, start: int, num_bytes: int) -> None:
        # The caller holds the state's lock.
        self._state = state
        self._start = start
        self._num_bytes = num_bytes
        self._written = 0
        if start < state.num_hashed:
            state.digest, state.num_hashed = hashlib.sha256(), 0
        self._digest = state.digest.copy() if start == state.num_hashed else None
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        state.writer = self

    def write(self, data: bytes) -> None:
        """Write the next bytes.

        Raises:
            Refusal: 409 a newer writer took over; 413 more bytes than the part has.
            OSError: The disk is full.
        """
        if self._written + len(data) > self._num_bytes:
            raise Refusal(413, f"More bytes arrived than the {self._num_bytes} that were announced.")
        with self._state.lock:
            self._check_owner()
            view = memoryview(data)
            while view:
                count = os.pwrite(self._handle, view, self._start + self._written)
                if self._digest is not None:
                    self._digest.update(view[:count])
                self._written += count
                view = view[count:]

    def finish(self) -> None:
        """Sync the part to disk.

        Raises:
            Refusal: 400 fewer bytes than announced; 409 a newer writer took over.
        """
        if self._written != self._num_bytes:
            raise bad_request(f"{self._written} bytes arrived, but {self._num_bytes} were announced: send them again.")
        os.fsync(self._handle)
        with self._state.lock:
            self._check_owner()
            self._state.writer = None
            if self._digest is not None:
                self._state.digest, self._state.num_hashed = self._digest, self._start + self._num_bytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _check_owner(self) -> None:
        if self._state.writer is not self:
            raise Refusal(409, "A newer attempt at this upload took over.")


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()  # finished meanwhile


def _check_whole(path: Path, upload: Upload, state: _State) -> None:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != upload.size_bytes:
            raise bad_request(
                f"Parts are missing: {size} of {upload.size_bytes} bytes have arrived. Upload the file again."
            )
        file.seek(state.num_hashed)
        buffer = memoryview(bytearray(_READ_BYTES))
        while count := file.readinto(buffer):
            state.digest.update(buffer[:count])
        os.fsync(file.fileno())
    sha256 = state.digest.hexdigest()
    if sha256 != upload.sha256:
        raise bad_request(f"The bytes have sha256 {sha256}, not {upload.sha256}: upload the file again.")
