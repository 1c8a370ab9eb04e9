"""JSON messages that the client sends. Source: huggingface_hub 2.4.0, hf_api.py, lfs.py, _commit_api.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

# The client sends 256 files at a time.
_MAX_FILES = 1000
_TEXT = 100_000

Name = Annotated[str, Field(max_length=200)]
PathText = Annotated[str, Field(max_length=2000)]
Text = Annotated[str, Field(max_length=_TEXT)]
Size = Annotated[int, Field(ge=0, le=1 << 50)]


class Message(BaseModel):
    """Base of all messages: strict in types; unknown fields are ignored, because newer clients send them."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=True)


class RepoName(Message):
    """A repo's name; without an organization the repo is in the caller's namespace."""

    name: Name
    organization: Name | None = None
    type: Name | None = None


class CreateRepo(RepoName):
    """POST /api/repos/create. Clients before 2.0 say `private`, later ones `visibility`."""

    private: bool | None = None
    visibility: Literal["public", "private"] | None = None


class MoveRepo(Message):
    """POST /api/repos/move."""

    from_repo: Name = Field(alias="fromRepo")
    to_repo: Name = Field(alias="toRepo")
    type: Name | None = None


class RepoSettings(Message):
    """PUT .../settings."""

    private: bool | None = None
    visibility: Literal["public", "private"] | None = None
    gated: Literal["auto", "manual", False] | None = None


class ValidateYaml(Message):
    """POST /api/validate-yaml."""

    content: str
    repo_type: Name | None = Field(default=None, alias="repoType")


class NewBranch(Message):
    """POST .../branch/NAME."""

    starting_point: Name | None = Field(default=None, alias="startingPoint")


class NewTag(Message):
    """POST .../tag/REVISION."""

    tag: Name
    message: Text | None = None


class Squash(Message):
    """POST .../super-squash/BRANCH."""

    message: Text = ""


class FileToUpload(Message):
    """One file of `Preupload`: `sample` is its first 512 bytes in base64."""

    path: PathText
    size: Size
    sample: Annotated[str, Field(max_length=4096)] = ""


class Preupload(Message):
    """POST .../preupload/REVISION."""

    files: Annotated[list[FileToUpload], Field(max_length=_MAX_FILES)]


class LfsObject(Message):
    """One object of a batch, and the body of a verify call."""

    oid: Name
    size: Size


class LfsBatch(Message):
    """POST ....git/info/lfs/objects/batch."""

    operation: Name
    objects: Annotated[list[LfsObject], Field(max_length=_MAX_FILES)]
    hash_algo: Name = "sha256"


class LfsPart(Message):
    """One part of `LfsComplete`."""

    part_number: int = Field(alias="partNumber")
    etag: Name


class LfsComplete(Message):
    """POST to a multipart upload's own URL, once its parts are there."""

    oid: Name
    parts: list[LfsPart]


class DuplicateTarget(Message):
    """The repo that receives the objects."""

    type: Name = "model"
    name: Name


class DuplicateFile(Message):
    """An object of `DuplicateFiles`."""

    sha256: Name


class DuplicateFiles(Message):
    """POST .../lfs-files/duplicate."""

    target: DuplicateTarget
    files: Annotated[list[DuplicateFile], Field(max_length=_MAX_FILES)]


class HeaderValue(Message):
    """A commit's title and description."""

    summary: Text
    description: Text = ""
    parent_commit: Name | None = Field(default=None, alias="parentCommit")


class FileValue(Message):
    """A small file in base64."""

    path: PathText
    content: str
    encoding: Literal["base64"] = "base64"


class LfsFileValue(Message):
    """A file that was uploaded over LFS, or a copy of one, which has no size."""

    path: PathText
    oid: Name
    algo: Literal["sha256"] = "sha256"
    size: Size | None = None


class PathValue(Message):
    """A path to delete."""

    path: PathText


class HeaderLine(Message):
    """First line of a commit."""

    key: Literal["header"]
    value: HeaderValue


class FileLine(Message):
    """Adds a small file."""

    key: Literal["file"]
    value: FileValue


class LfsFileLine(Message):
    """Adds an LFS file."""

    key: Literal["lfsFile"]
    value: LfsFileValue


class DeleteLine(Message):
    """Deletes a file or folder."""

    key: Literal["deletedFile", "deletedFolder"]
    value: PathValue


class CommitLine(RootModel[Annotated[HeaderLine | FileLine | LfsFileLine | DeleteLine, Field(discriminator="key")]]):
    """A line of a commit's body."""
