"""Handler that copies objects from one repo to another, so that they need not be uploaded again.

Source: huggingface_hub 2.4.0, hf_api.py, `_duplicate_lfs_files`.
"""

from __future__ import annotations

import sqlite3

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.localhub import history, repos
from shardhub.localhub.access import hub_of, readable_repo
from shardhub.localhub.bodies import read_model
from shardhub.localhub.messages import DuplicateFiles
from shardhub.localhub.paths import check_digest, check_repo_type
from shardhub.localhub.refusals import bad_request
from shardhub.localhub.repos import Repo, find_writable


async def duplicate(request: Request) -> Response:
    """POST .../lfs-files/duplicate on the repo that has the objects; the target is in the body.

    Only objects in a branch or tag of the source are copied, since those are what the caller may read there; an object
    that was merely uploaded to a repo is not readable.
    """
    caller, source = await readable_repo(request)
    message = await read_model(request, DuplicateFiles)
    namespace, slash, name = message.target.name.partition("/")
    if not slash:
        raise bad_request(f"The target {message.target.name!r} is not NAMESPACE/NAME.")
    kind, catalog = check_repo_type(message.target.type), hub_of(request).catalog
    digests = [check_digest(file.sha256) for file in message.files]

    def give() -> list[dict[str, str]]:
        with catalog.writing() as connection:
            target = find_writable(connection, caller, kind, namespace, name)
            held = _held(connection, source)
            for sha256 in digests:
                if sha256 in held:
                    repos.own_object(connection, target.row, sha256, held[sha256])
            return [
                {"sha256": sha256, "error": f"{source.id} does not have this file."}
                for sha256 in digests
                if sha256 not in held
            ]

    return JSONResponse({"failed": await run_in_threadpool(give)})


def _held(connection: sqlite3.Connection, repo: Repo) -> dict[str, int]:
    """Sizes by sha256 of the LFS files in the repo's branches and tags."""
    trees = [history.read(connection, repo, commit).tree for commit in set(history.refs(connection, repo).values())]
    return {entry.sha256: entry.size_bytes for tree in trees for entry in tree.values() if entry.lfs}
