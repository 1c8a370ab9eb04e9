"""References on the command line: a folder on this machine, or a repo on the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shardhub.errors import UsageError
from shardhub.naming import COMMIT_PATTERN, REPO_PATTERN
from shardhub.setting_checks import check_argument

PUBLIC_ENDPOINT = "https://huggingface.co"
_PUBLIC_HOSTS = ("huggingface.co", "hf.co")
# Names of branches and tags that git allows, except those with another meaning in a URL or a file name.
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/+-]{0,198}[A-Za-z0-9_+])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A repo on the Hub.

    Attributes:
        repo: `org/name`.
        revision: Branch, tag or commit; None for the commit that the publisher pinned, else the newest.
    """

    repo: str
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The commit, if the revision is one."""
        is_commit = self.revision is not None and re.fullmatch(COMMIT_PATTERN, self.revision)
        return self.revision if is_commit else None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def _plain(text: str) -> str:
    """Convert a repo's URL in a browser to `org/name[@revision]`; other text is returned unchanged."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    for start in (endpoint, PUBLIC_ENDPOINT, "https://hf.co", "http://huggingface.co", "hf:/", "hf.co"):
        if start and text.startswith(f"{start}/"):
            text = text.removeprefix(f"{start}/")
            break
    address = re.fullmatch(r"([^/@]+/[^/@]+)/(?:(?:tree|blob|resolve|commit)/(.+?)/?)?", text)
    if address is None:
        return text
    # In a URL, the slash of a branch's name is %2F.
    return address[1] if address[2] is None else f"{address[1]}@{unquote(address[2])}"


def is_url(text: str | Path) -> bool:
    """Whether a model is named by its URL."""
    return not isinstance(text, Path) and urlsplit(text).scheme in {"http", "https"}


def parse_source(text: str | Path, endpoint: str | None) -> tuple[Reference | Path, str | None]:
    """Parse a model's name, which may be its URL on any Hub.

    Args:
        text: As for `parse_reference`, or `http://HOST:PORT/ORG/NAME`.
        endpoint: URL of the Hub that the name is from; None leaves that to the name.

    Returns:
        The folder or repo, and the URL of its Hub; None for the Hub of the environment.

    Raises:
        UsageError: The URL names another Hub than `endpoint`; as `parse_reference`.
    """
    place = parse_reference(text)
    url = urlsplit(str(text)) if is_url(text) else None
    if url is None or "@" in url.netloc:
        return place, None if isinstance(place, Path) or endpoint is None else endpoint.rstrip("/")
    own = PUBLIC_ENDPOINT if url.netloc in _PUBLIC_HOSTS else f"{url.scheme}://{url.netloc}"
    if endpoint is not None and endpoint.rstrip("/") != own:
        raise UsageError(
            f"{text} is not on the Hub at {endpoint}.", hint="Give the model's URL, or `source_endpoint` and its name."
        )
    path = url.path.strip("/")
    reference = _in_repo(_plain(path if "@" in path else f"{path}/"))
    if reference is None:
        raise UsageError(
            f"{str(text)[:120]!r} is not the URL of a model.", hint="Write http://HOST:PORT/ORG/NAME[@REVISION]."
        )
    return reference, own


def parse_reference(text: str | Path) -> Reference | Path:
    """Parse `org/name[@revision]` or a folder. An existing folder takes precedence; `./org/name` is always a folder.

    A `Path` is a folder too.

    Raises:
        UsageError: The revision is malformed, or the name is not a text.
    """
    check_argument("name", text, str | Path)
    try:
        path = Path(text).expanduser()
        is_there = path.exists()
    except OSError as error:  # the name is too long
        what = f"{str(text)[:120]!r} is neither a folder nor the name of a repo."
        raise UsageError(what, why=f"{error.strerror}.", hint="Give a folder, or a Hub id such as ORG/NAME.") from error
    if not isinstance(text, str) or not text or is_there or text.startswith((".", "/", "~")):
        return path
    return _in_repo(_plain(text)) or path


def _in_repo(text: str) -> Reference | None:
    """Parse `org/name[@revision]`; None for any other text."""
    repo, at, revision = text.partition("@")
    if not re.fullmatch(REPO_PATTERN, repo):
        return None
    if not at:
        return Reference(repo=repo)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(
            f"{revision[:80]!r} is not the name of a revision.",
            hint="Write ORG/NAME@REVISION with a branch, a tag or a commit.",
        )
    return Reference(repo=repo, revision=revision)
