"""Names of repos, folders and files: how they are made, and which are accepted."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from shardhub.errors import FormatError, UsageError

# A weight file's name is joined to a folder's path, so it must not be able to leave that folder.
WEIGHT_FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors$"
# Names of the small files beside the weights.
PLAIN_FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
# Name under which documents and settings know a Hub that is not the reader's own.
HUB_PATTERN = r"^[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?$"
# Default port of `shardhub serve`.
NODE_PORT = 50051
# Port of the resident of a machine.
RESIDENT_PORT = 50047
COMMIT_PATTERN = r"^[0-9a-f]{40}$"
# The first digits of a commit, which git accepts if they are unique.
SHORT_COMMIT_PATTERN = r"^[0-9a-f]{7,39}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
_COMPUTED_PREFIX = "computed-"
# Reserved on Windows, where such a name opens a device.
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)

# The Hub accepts 96 characters in a name; the longest suffix is that of the last of 1024 shards.
MAX_NAME_CHARS = 80
_NAMESPACE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
# Source: huggingface_hub, `validate_repo_id`.
_RULE = (
    "A name consists of letters from a to z, digits, '-', '_' and '.', begins and ends with a letter or digit, and "
    "does not contain -- or .."
)
# A repo's folder in the Hub's cache. Source: huggingface_hub, `repo_folder_name`.
_CACHE_FOLDER = re.compile(r"models--(?:[^/]+?--)?([^/]+)")

STAGE_FILE = "stage.json"
MANIFEST_FILE = "shardhub.json"
SIGNATURE_FILE = "shardhub.json.sig"
CATALOGUE_FILE = "tensors.json"
PROOF_FILE = "proof.json"
RANGES_FILE = "ranges.json"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
PICTURE_FILE = "page.png"


def handed_name(index: int, file: str) -> str:
    """Name of a shard's document where the documents of all shards lie in the pipeline's folder."""
    return f"shard-{index:05d}.{file}"


def shard_name(name: str, index: int) -> str:
    """Name of a shard repo or folder, `index` from 0."""
    return f"{name}-shard-{index}"


def pipeline_name(name: str) -> str:
    """Name of a manifest repo or folder."""
    return f"{name}-pipeline"


def model_name(source: str) -> str:
    """Default base name for the shards of a model given as a Hub id or a folder path.

    Raises:
        UsageError: No usable character is left of the name.
    """
    parts = source.rstrip("/\\").replace("\\", "/").split("/")
    if len(parts) > 2 and parts[-2] == "snapshots":  # in the Hub's cache, folders are named by commits
        parts = parts[:-2]
    if (cached := _CACHE_FOLDER.fullmatch(parts[-1])) is not None:
        parts = [cached[1]]
    name = _plain(parts[-1].split("@", 1)[0])
    if not name:
        raise UsageError(
            f"{parts[-1][:80]!r} cannot be turned into a name for the shards.",
            why="The name of a repo may contain only letters from a to z, digits, '-', '_' and '.'.",
            hint="Give one with `name` NAME.",
        )
    return name


def check_model_name(name: str) -> str:
    """Return a user's base name if repos can be named after it.

    Raises:
        UsageError: A Hub would refuse the names of the repos.
    """
    plain = _plain(name)
    if plain and name == plain:
        return name
    raise UsageError(
        f"{name[:120]!r} cannot be the name of a repo.",
        why=f"{_RULE}, and has at most {MAX_NAME_CHARS} characters before a suffix such as -shard-0 or -pipeline is "
        f"added.",
        hint=f"Write `name` {plain}" if plain else "Write a plain name, such as `name` my-model",
    )


def check_namespace(namespace: str) -> str:
    """Return `namespace` if a user or an organisation can have that name.

    Raises:
        UsageError: The name is invalid.
    """
    if not _NAMESPACE.fullmatch(namespace) or "--" in namespace or ".." in namespace:
        raise UsageError(
            f"{namespace[:120]!r} is not the name of a user or an organisation.",
            why=f"{_RULE}.",
            hint="Write `namespace` NAME, as in ORG/MODEL before the slash.",
        )
    return namespace


def _plain(text: str) -> str:
    """The nearest base name that repos can have; empty if nothing is left."""
    text = unicodedata.normalize("NFKD", text)
    text = "".join(char for char in text if not unicodedata.combining(char))
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    text = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", text)).strip("-._")[:MAX_NAME_CHARS].rstrip("-._")
    return f"model-{text}" if _RESERVED.match(text) else text


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


def computed_file_name(weight_file: str) -> str:
    """Name of the file with the computed tensors of a weight file whose other tensors are left in the source.

    A weight file never has such a name: groups begin with `layer-` or are module paths, in which there are no hyphens.
    """
    return f"{_COMPUTED_PREFIX}{weight_file}"


def is_computed_file(name: str) -> bool:
    """Whether a file has a name that `computed_file_name` gives."""
    return name.startswith(_COMPUTED_PREFIX)


def check_is_text(path: Path) -> None:
    """Check that a path is valid text, so that it can be printed, written in documents, and opened by MLX.

    Raises:
        UsageError: Its bytes are not UTF-8.
    """
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UsageError(
            f"{shown} cannot be used: its name is not text in UTF-8.",
            why="MLX cannot open such files, and JSON cannot hold the name.",
            hint="Rename the folder, or link to it: ln -s FOLDER plain-name",
        ) from error
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} cannot be resolved: the folder that this command runs in was deleted.",
            hint="Change to another folder (cd), and run the command again.",
        ) from error


def check_file_name(name: str, *, where: str, pattern: str = PLAIN_FILE_PATTERN) -> str:
    """Return `name` if it is a plain file name, safe to join to a folder on any system.

    Raises:
        FormatError: The name is a path, reserved or hidden, or has other characters.
    """
    if not re.fullmatch(pattern.strip("^$"), name) or ".." in name or _RESERVED.match(name):
        raise FormatError(
            f"{where}: {name!r} is not a plain file name.",
            why=f"Names must match {pattern} and must not be reserved.",
            hint="The document was not written by shardhub, or was changed: download it again from its publisher.",
        )
    return name
