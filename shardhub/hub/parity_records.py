"""Reading the parity records beside a manifest on the Hub, and adding one by a commit of its own."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from shardhub.errors import Conflict, FormatError
from shardhub.hub.calls import HubCalls
from shardhub.hub.remote_repo import list_files, look, read_small
from shardhub.manifest import Parity, encode
from shardhub.naming import CARD_FILE
from shardhub.parity import MAX_RECORD_BYTES, MAX_RECORDS, PARITY_FOLDER, Numbers, file_name
from shardhub.splitting.cards import with_parity_line

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


def read_remote_records(calls: HubCalls, repo: str, commit: str) -> dict[str, bytes]:
    """Read the records in a pipeline's repo at a commit, by file name.

    Raises:
        FormatError: There are more records, or larger ones, than the limits allow.
        AccessError, HubUnreachable, HubRefused: The records cannot be read.
    """
    files = list_files(calls, repo, commit)
    records = [entry for path, entry in sorted(files.items()) if str(PurePosixPath(path).parent) == PARITY_FOLDER]
    if len(records) > MAX_RECORDS or any(entry.size_bytes > MAX_RECORD_BYTES for entry in records):
        raise FormatError(
            f"{repo}/{PARITY_FOLDER} is not a valid folder of parity records.",
            why=f"It may hold at most {MAX_RECORDS} records of at most {MAX_RECORD_BYTES} bytes each.",
        )
    return {PurePosixPath(entry.path).name: read_small(calls, repo, commit, entry) for entry in records}


def push_record(calls: HubCalls, repo: str, parity: Parity) -> str:
    """Add a record to its pipeline's repo and to the card; nothing else in the repo changes.

    Returns:
        The commit.

    Raises:
        Conflict: The repo holds another pipeline by now, or changed meanwhile.
        AccessError, HubUnreachable, HubRefused: A call to the Hub failed.
    """
    from huggingface_hub import CommitOperationAdd

    there = look(calls, repo)
    pipeline_id = None if there is None or there.manifest is None else there.manifest.pipeline_id
    if there is None or pipeline_id != parity.pipeline_id:
        raise Conflict(
            f"The record was made for another pipeline than {repo}.",
            why=f"It is {(pipeline_id or 'none')[:16]}, the record is for {parity.pipeline_id[:16]}.",
            hint="Run the same command again: it reads the repo anew.",
        )
    path = file_name(parity)
    documents = {path: encode(parity)}
    if CARD_FILE in there.files:
        card = read_small(calls, repo, there.commit, there.files[CARD_FILE]).decode("utf-8", "replace")
        if (updated := with_parity_line(card, Numbers(parity=parity))) != card:
            documents[CARD_FILE] = updated.encode()

    def send() -> str:
        added: list[CommitOperationAdd] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in documents.items()
        ]
        message = f"Parity record: {parity.tokens_equal} of {parity.num_tokens} tokens"
        return calls.api.create_commit(repo, added, commit_message=message, parent_commit=there.commit).oid

    try:
        return calls.run(send, what=f"committing to {repo}", repo=repo)
    except Conflict:
        # The commit may have been made although its answer was lost.
        now = look(calls, repo)
        if now is not None and path in now.files:
            return now.commit
        raise
