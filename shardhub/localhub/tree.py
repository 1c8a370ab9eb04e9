"""The files of one commit, and pure functions that apply a commit to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardhub.localhub.refusals import Refusal, bad_request, entry_not_found

# Limit, because a commit's row holds its whole tree; shard repos have tens of files.
MAX_FILES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file in a tree.

    Attributes:
        sha256, size_bytes: Digest and size of its bytes.
        oid: git's blob id of the content or, for an LFS file, of its pointer; the client compares it.
        lfs: Whether the client is told that the file is in LFS.
        changed: Id of the commit that last changed it.
    """

    sha256: str
    size_bytes: int
    oid: str
    lfs: bool
    changed: str

    @property
    def etag(self) -> str:
        """The ETag by which the client names its cached copy."""
        return self.sha256 if self.lfs else self.oid


Tree = Mapping[str, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """Put a file at a path; `size_bytes` None takes the object's size (for a copy)."""

    path: str
    sha256: str
    size_bytes: int | None
    oid: str | None
    lfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete a file, or a folder with everything in it."""

    path: str
    folder: bool


Operation = Add | Delete


def git_blob_oid(content: bytes) -> str:
    """git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size_bytes: int) -> bytes:
    """The pointer that git stores for an LFS file. Source: git-lfs, docs/spec.md."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def apply(tree: Tree, operations: Sequence[Operation], *, owned: Mapping[str, int], commit: str) -> dict[str, Entry]:
    """Apply a commit to a tree and return the new tree.

    Args:
        tree: The tree before.
        operations: The commit's operations, in order.
        owned: Sizes of the objects that the repo has, by sha256.
        commit: The new commit's id.

    Raises:
        Refusal: 400 an object is missing or has another size, or a file would be a folder; 404 nothing to delete; 413.
    """
    result = dict(tree)
    for operation in operations:
        if isinstance(operation, Delete):
            _delete(result, operation)
            continue
        size = owned.get(operation.sha256)
        if size is None or operation.size_bytes not in {None, size}:
            raise bad_request(
                f"{operation.path}: {operation.sha256} ({operation.size_bytes} bytes) was not uploaded to this repo."
            )
        before = result.get(operation.path)
        if before is not None and before.sha256 == operation.sha256:
            continue
        oid = operation.oid or git_blob_oid(lfs_pointer(operation.sha256, size))
        result[operation.path] = Entry(
            sha256=operation.sha256, size_bytes=size, oid=oid, lfs=operation.lfs, changed=commit
        )
    if len(result) > MAX_FILES:
        raise Refusal(413, f"The repo would have {len(result)} files, and the limit is {MAX_FILES}.")
    for path in result:
        for folder in _folders_above(path):
            if folder in result:
                raise bad_request(f"{folder!r} cannot be both a file and the folder of {path!r}.")
    return result


def _delete(tree: dict[str, Entry], operation: Delete) -> None:
    if operation.folder:
        doomed = [path for path in tree if path.startswith(f"{operation.path}/")]
    else:
        doomed = [operation.path] if operation.path in tree else []
    if not doomed:
        raise entry_not_found(operation.path)
    for path in doomed:
        del tree[path]


def folders(tree: Tree) -> dict[str, str]:
    """All folders, each with an id that changes when anything in it does."""
    hashes: dict[str, hashlib._Hash] = {}
    for path in sorted(tree):
        for folder in _folders_above(path):
            digest = hashes.setdefault(folder, hashlib.sha1(usedforsecurity=False))
            digest.update(f"{path}\0{tree[path].oid}\0".encode())
    return {folder: digest.hexdigest() for folder, digest in hashes.items()}


def listing(tree: Tree, folder: str, *, recursive: bool) -> list[str]:
    """List the paths of files and folders in a folder (`""` is the root), sorted; with everything below if `recursive`.

    Raises:
        Refusal: 404, there is no such folder.
    """
    prefix = f"{folder}/" if folder else ""
    paths = [path for path in (*tree, *folders(tree)) if path.startswith(prefix)]
    if folder and not paths:
        raise entry_not_found(folder)
    return sorted(path for path in paths if recursive or "/" not in path[len(prefix) :])


def dump(tree: Tree) -> str:
    """Serialise a tree for its row in the database."""
    rows = [[path, e.sha256, e.size_bytes, e.oid, e.lfs, e.changed] for path, e in sorted(tree.items())]
    return json.dumps(rows, separators=(",", ":"))


def load(text: str) -> dict[str, Entry]:
    """The inverse of `dump`."""
    return {
        path: Entry(sha256=sha256, size_bytes=size, oid=oid, lfs=lfs, changed=changed)
        for path, sha256, size, oid, lfs, changed in json.loads(text)
    }


def _folders_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
