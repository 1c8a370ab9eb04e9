"""Names of repos, folders and files: which are made, and which are accepted."""

from __future__ import annotations

import re

from shardhub.errors import FormatError, UsageError

# A weight file's name is joined to a folder's path, so it must not be able to leave it.
WEIGHT_FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors$"
# Names of the small files beside the weights.
PLAIN_FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
# Reserved on Windows, where such a file opens a device.
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)

STAGE_FILE = "stage.json"
MANIFEST_FILE = "shardhub.json"
SIGNATURE_FILE = "shardhub.json.sig"
CATALOGUE_FILE = "tensors.json"
PROOF_FILE = "proof.json"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
PICTURE_FILE = "page.png"


def shard_name(name: str, index: int) -> str:
    """Name of a shard repo or folder, `index` from 0."""
    return f"{name}-shard-{index}"


def pipeline_name(name: str) -> str:
    """Name of a manifest repo or folder."""
    return f"{name}-pipeline"


def model_name(source: str) -> str:
    """Default base name for the shards of a model given as a Hub id or a folder path.

    Raises:
        UsageError: Nothing usable is left of the name.
    """
    last = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].split("@", 1)[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:80]
    if not name:
        raise UsageError(f"No name can be made from {source!r}.", hint="Give one with --name.")
    return name


def weight_file_name(group: str, part: int | None = None) -> str:
    """Name of the weight file that holds a group of tensors.

    Args:
        group: `layer-00012`, or the module path of tensors outside the layers, such as `model.embed_tokens`.
        part: Number of the file from 0 when the group takes several, else None.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", group)[:100] or "root"
    if not safe[0].isalnum():
        safe = f"m{safe}"
    return f"{safe}.safetensors" if part is None else f"{safe}-{part:05d}.safetensors"


def check_file_name(name: str, *, where: str, pattern: str = PLAIN_FILE_PATTERN) -> str:
    """Return `name` if it is a plain file name, safe to join to a folder on any system.

    Raises:
        FormatError: It is a path, reserved, hidden, or has other characters.
    """
    if not re.fullmatch(pattern.strip("^$"), name) or ".." in name or _RESERVED.match(name):
        raise FormatError(
            f"{where}: {name!r} is not a plain file name.",
            why=f"Names must match {pattern} and must not be reserved.",
            hint="The document was not written by shardhub, or was changed: get it again from its publisher.",
        )
    return name
