"""Pure decisions on what a push does with each repo, given what the repo holds now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shardhub.checkpoint.quantisation import quantisation_text
from shardhub.errors import Conflict, UsageError
from shardhub.hub.remote_repo import RemoteRepo
from shardhub.manifest import Manifest, Source, Stage
from shardhub.splitting.shard_folder import UNKNOWN

# Number of cuts that an error lists.
_SHOWN = 20


class Action(StrEnum):
    """What a push does to a repo."""

    CREATE = "new"
    UPDATE = "update"
    REPLACE = "replace"
    KEEP = "already there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The decision on one repo of a push.

    Attributes:
        repo: Its id.
        remote: Its current state; None if it has to be made.
        why: For a replacement, what the repo holds now.
    """

    repo: str
    action: Action
    remote: RemoteRepo | None
    why: str = ""


def decide_shard(
    repo: str, remote: RemoteRepo | None, expected: Stage, *, replace: bool, is_whole: bool = True
) -> Decision:
    """Decide what to do with a shard's repo.

    Args:
        repo: Its id.
        remote: Its current state; None if it does not exist.
        expected: The stage it will hold; a sha256 that is not known yet is `UNKNOWN`.
        replace: Whether other contents may be replaced.
        is_whole: Whether the repo has everything else that belongs to this stage.

    Raises:
        Conflict: The repo holds something else.
    """
    if remote is None or remote.is_empty:
        return Decision(repo=repo, action=Action.CREATE, remote=remote)
    if (stage := remote.stage) is None:
        return _replacement(repo, remote, "it is not a shard", replace=replace)
    if (stage.start, stage.stop, stage.num_layers) != (expected.start, expected.stop, expected.num_layers):
        why = (
            f"it holds layers [{stage.start}, {stage.stop}) of {stage.num_layers}, and this cut puts "
            f"[{expected.start}, {expected.stop}) of {expected.num_layers} there"
        )
        return _replacement(repo, remote, why, replace=replace)
    if not _same_model(stage, expected):
        return _replacement(repo, remote, "it holds the same layers of another model", replace=replace)
    if stage.source.quantized != expected.source.quantized:
        held, new = (_weights_text(each.source) for each in (stage, expected))
        return _replacement(repo, remote, f"it holds the same layers {held}, and these are {new}", replace=replace)
    action = Action.KEEP if stage == expected and is_whole else Action.UPDATE
    return Decision(repo=repo, action=action, remote=remote)


def decide_pipeline(repo: str, remote: RemoteRepo | None, expected: Manifest, *, replace: bool) -> Decision:
    """Decide what to do with the manifest repo; digests and locations do not count, as they are known only later.

    Raises:
        Conflict: The repo holds something else.
    """
    if remote is None or remote.is_empty:
        return Decision(repo=repo, action=Action.CREATE, remote=remote)
    if (manifest := remote.manifest) is None:
        return _replacement(repo, remote, "it is not a pipeline", replace=replace)
    there, expected_cuts = _cuts(manifest), _cuts(expected)
    if (there, manifest.num_layers) != (expected_cuts, expected.num_layers):
        why = (
            f"it is a pipeline of {manifest.num_layers} layers cut at {_shown(there)}, and this one has "
            f"{expected.num_layers} layers cut at {_shown(expected_cuts)}"
        )
        return _replacement(repo, remote, why, replace=replace)
    return Decision(repo=repo, action=Action.UPDATE, remote=remote)


def adopted_digests(remote: RemoteRepo | None, expected: Stage, referenced: Collection[str] = ()) -> dict[str, str]:
    """sha256 by file name that need not be computed because the repo's stage.json has them.

    Only for a source at a commit: its bytes determine those of a weight file, so the same file of the same commit has
    the same sha256.

    Args:
        remote: The repo's current state.
        expected: The stage it will hold.
        referenced: Names of weight files that the repo need not hold.
    """
    if remote is None or remote.stage is None or expected.source.commit is None:
        return {}
    stage = remote.stage
    if (stage.source, stage.catalogue_digest) != (expected.source, expected.catalogue_digest):
        return {}
    expected_files = {(file.name, file.size_bytes, file.tensors) for file in expected.weight_files}
    return {
        file.name: file.sha256
        for file in stage.weight_files
        if (file.name, file.size_bytes, file.tensors) in expected_files
        and (file.name in referenced or remote.holds(file.sha256))
    }


def check_visibility(decisions: Sequence[Decision], *, private: bool) -> None:
    """Refuse to push private contents into public repos.

    Raises:
        UsageError: A repo exists and is public.
    """
    public = [at.repo for at in decisions if at.remote is not None and not at.remote.private]
    if private and public:
        raise public_unlike_asked(public)


def public_unlike_asked(public: Sequence[str]) -> UsageError:
    """The error for repos that everyone can read, although `private` was given."""
    return UsageError(
        f"{public[0]} is public, but `private` was given.",
        why=f"Public already: {', '.join(public[:_SHOWN])}.",
        hint="Make them private in their settings, give another `name`, or leave out `private`.",
    )


def is_complete(stage: Stage) -> bool:
    """Whether every sha256 in the stage is known."""
    return all(file.sha256 != UNKNOWN for file in stage.weight_files)


def obsolete_files(decision: Decision, kept: Collection[str]) -> list[str]:
    """Paths that a commit must delete so that nothing of the previous shard or pipeline stays in the repo.

    Args:
        decision: The decision on the repo.
        kept: Paths that stay.
    """
    remote = decision.remote
    if remote is None:
        return []
    if remote.stage is not None:
        old = {file.name for file in remote.stage.weight_files}
    elif remote.manifest is not None:
        old = set(remote.manifest.files)
    else:
        old = {path for path in remote.files if path != ".gitattributes"}
    return sorted(path for path in old & set(remote.files) if path not in kept)


def _same_model(there: Stage, expected: Stage) -> bool:
    if there.source.repo is not None and there.source.repo == expected.source.repo:
        return True
    return there.catalogue_digest == expected.catalogue_digest


def _weights_text(source: Source) -> str:
    return "as the model has them" if source.quantized is None else f"in {quantisation_text(source.quantized)}"


def _replacement(repo: str, remote: RemoteRepo, why: str, *, replace: bool) -> Decision:
    if replace:
        return Decision(repo=repo, action=Action.REPLACE, remote=remote, why=why)
    raise Conflict(
        f"{repo} already exists with other contents.",
        why=f"{why[:1].upper()}{why[1:]}.",
        hint="Give another name with `name`, or add `replace`: the old commits are kept under a tag, and manifests "
        "that name them keep working.",
    )


def _cuts(manifest: Manifest) -> list[int]:
    return [stage.start for stage in manifest.stages[1:]]


def _shown(cuts: Sequence[int]) -> str:
    return f"{list(cuts[:_SHOWN])}" + ("..." if len(cuts) > _SHOWN else "")
