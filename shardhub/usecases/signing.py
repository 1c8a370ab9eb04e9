"""Signed manifests: keys for signing, and keys that are required."""

from __future__ import annotations

from pathlib import Path

from shardhub.errors import SignatureError
from shardhub.naming import SIGNATURE_FILE
from shardhub.security.signatures import Signer, check_signature, check_unchanged, load_signer, parse_public_key
from shardhub.usecases.watcher import SILENT, Watcher


def signer_of(path: str | Path | None) -> Signer | None:
    """Load the key that `--sign-key` names, before anything else is done.

    Raises:
        IdentityError: The file does not hold a signing key, or others can read it.
    """
    return None if path is None else load_signer(Path(path))


def check_pipeline(folder: Path, required: str | None, watcher: Watcher = SILENT) -> None:
    """Check a pipeline's signature against `--require-signature`; without one, warn of a wrong signature.

    Raises:
        UsageError: `required` is not a public key.
        SignatureError: The manifest is not signed with it.
    """
    if required is not None:
        check_signature(folder, parse_public_key(required))
    elif (folder / SIGNATURE_FILE).is_file():
        try:
            check_unchanged(folder)
        except SignatureError as error:
            watcher.note(f"WARNING: {error}")
