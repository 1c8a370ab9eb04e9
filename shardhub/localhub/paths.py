"""Validation of untrusted names: which repos, revisions, files and digests are accepted.

All checks are allow-lists. The names are never joined to a path on disk (blobs are named by their digest), but clients
join the names they receive to their own folders. Source: huggingface_hub's own rule, `validate_repo_id`.
"""

from __future__ import annotations

import re

from shardhub.localhub.refusals import Refusal, bad_request

# `huggingface_hub.utils.validate_repo_id` accepts 96 characters for the whole name.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
# First segments of URLs that are not namespaces.
_RESERVED_NAMESPACES = frozenset(
    {"api", "datasets", "spaces", "models", "kernels", "buckets", "_lfs", "_xet", "_sign-in"}
)
_REF_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_REF_CHARS = 200
# Longest name on common file systems, and longest path that leaves room for a cache folder in front of it.
_MAX_SEGMENT_BYTES = 255
_MAX_PATH_BYTES = 1024

REPO_TYPES = ("model", "dataset")


def check_repo_type(kind: str | None) -> str:
    """Return the repo type, `model` if none is given.

    Raises:
        Refusal: 400, for Spaces and other types that this Hub does not keep.
    """
    if kind is None:
        return "model"
    if kind not in REPO_TYPES:
        raise bad_request(f"This Hub keeps models and datasets, not {kind[:50]!r}.")
    return kind


def check_namespace(namespace: str) -> str:
    """Return the namespace if it is valid.

    Raises:
        Refusal: 400.
    """
    if namespace.lower() in _RESERVED_NAMESPACES:
        raise bad_request(f"{namespace!r} is reserved: it cannot be a namespace.")
    return check_name(namespace)


def check_name(name: str) -> str:
    """Return the name of a repo or user if it is valid.

    Raises:
        Refusal: 400.
    """
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(("-", ".", ".git", ".ipynb")):
        raise bad_request(
            f"{name[:120]!r} is not a valid name: up to 96 letters, digits, '-', '_' and '.', "
            "no '--' or '..', and no '-', '.' or '.git' at the end."
        )
    return name


def check_ref_name(name: str) -> str:
    """Return the name of a branch or tag if it is valid.

    Raises:
        Refusal: 400.
    """
    segments = name.split("/")
    if (
        len(name) > _MAX_REF_CHARS
        or not all(_REF_SEGMENT.fullmatch(segment) for segment in segments)
        or any(segment.endswith((".lock", ".")) or ".." in segment for segment in segments)
        or segments[0] == "refs"
        or is_commit(name)
    ):
        raise bad_request(f"{name[:120]!r} cannot be the name of a branch or tag.")
    return name


def is_commit(text: str) -> bool:
    """Whether the text has the form of a commit id."""
    return _COMMIT.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """Return the digest if it is a sha256 in lower-case hex.

    Raises:
        Refusal: 400.
    """
    if not _DIGEST.fullmatch(text):
        raise bad_request(f"{text[:100]!r} is not a sha256 in lower-case hex.")
    return text


def check_path(path: str) -> str:
    """Return a path in a repo if it is plain: relative, without `.`, `..`, `.git`, or empty or odd segments.

    Raises:
        Refusal: 400.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise _bad_path(path) from None
    if len(encoded) > _MAX_PATH_BYTES or not path.isprintable() or "\\" in path:
        raise _bad_path(path)
    for segment in path.split("/"):
        if segment in {"", ".", ".."} or segment.lower() == ".git" or len(segment.encode()) > _MAX_SEGMENT_BYTES:
            raise _bad_path(path)
    return path


def _bad_path(path: str) -> Refusal:
    return bad_request(
        f"{path[:120]!r} is not a valid path in a repo: it must consist of plain names separated by "
        "single '/', without '..'."
    )
