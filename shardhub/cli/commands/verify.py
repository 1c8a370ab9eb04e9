"""`shardhub verify`: compares a pipeline's bytes, proof and numbers with what was published."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import (
    CacheDir,
    InsecureLan,
    LocalFlags,
    Memory,
    Node,
    NodeFlags,
    NoLocal,
    Seed,
    Tls,
    head_settings,
)
from shardhub.cli.pipeline_flags import PipelineFlags
from shardhub.cli.setting_names import with_flags
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import UsageError
from shardhub.limits import MAX_REFERENCE_TOKENS
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.usecases.start_head import HeadSettings
    from shardhub.usecases.verify_reference import ReferenceSettings
    from shardhub.usecases.verify_source import SourceSettings


# Exit code of a check that found a difference.
_EXIT_DIFFERENT = 3

# Most differing tensors that are printed.
_DIFFERENCES_SHOWN = 20


@flags("Bytes and proof")
class FileFlags:
    """How a pipeline's files are checked."""

    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch missing shards.")] = False
    key: Annotated[
        str | None, typer.Option("--key", help="Public key that must have signed the manifest.", metavar="KEY|FILE")
    ] = None
    cache_dir: CacheDir = None


@flags("Numbers on live nodes")
class RunFlags:
    """How a live chain is checked."""

    run: Annotated[bool, typer.Option("--run", help="Feed a parity record's prompts to the live chain.")] = False
    node: Node = None
    tls: Tls = None
    insecure_lan: InsecureLan = False
    no_local: NoLocal = False


@flags("Numbers of the whole model")
class ReferenceFlags:
    """How stages are compared with the whole model."""

    reference: Annotated[
        bool,
        typer.Option(
            "--reference", help="Compare the stages with the whole model on this machine, and keep the record."
        ),
    ] = False
    push: Annotated[bool, typer.Option("--push", help="With --reference: add the record to the pipeline's repo.")] = (
        False
    )
    num_tokens: Annotated[
        int, typer.Option("--tokens", help="With --reference: tokens to decode.", min=1, max=MAX_REFERENCE_TOKENS)
    ] = 64
    memory: Memory = None


@flags("The source's bytes")
class SourceFlags:
    """How tensors are compared with the source's."""

    source: Annotated[bool, typer.Option("--source", help="Compare tensors with the source's bytes.")] = False
    num_tensors: Annotated[
        int | None, typer.Option("--tensors", help="With --source: how many, drawn at random.", min=1, metavar="N")
    ] = None
    seed: Seed = None
    source_folder: Annotated[
        Path | None, typer.Option(help="Folder of the model the pipeline was made from.", metavar="DIR")
    ] = None


def verify(
    pipeline: PipelineFlags,
    files: FileFlags,
    live: RunFlags,
    whole: ReferenceFlags,
    bytes_: SourceFlags,
    reading: SourceHubFlags,
    output: Output,
) -> int:
    """Check a pipeline's bytes and proof; with an option, its numbers on live nodes or its source's bytes."""
    named = pipeline.named("verify")
    match _mode(files, live, whole, bytes_, reading):
        case "--run":
            nodes = NodeFlags(node=live.node, tls=live.tls, insecure_lan=live.insecure_lan)
            here = LocalFlags(no_local=live.no_local, memory=whole.memory, cache_dir=files.cache_dir)
            return _run(head_settings(named, nodes, here), as_json=output.as_json)
        case "--reference":
            from shardhub.usecases.verify_reference import ReferenceSettings

            reference = ReferenceSettings(
                source_folder=bytes_.source_folder,
                push=whole.push,
                fetch=files.fetch,
                num_tokens=whole.num_tokens,
                memory=whole.memory,
                cache_dir=files.cache_dir,
            )
            return _reference(named, reference, as_json=output.as_json)
        case "--source":
            from shardhub.usecases.verify_source import SourceSettings

            source = SourceSettings(
                source_folder=bytes_.source_folder,
                source_endpoint=reading.source_endpoint,
                num_tensors=bytes_.num_tensors,
                seed=bytes_.seed,
                fetch=files.fetch,
                cache_dir=files.cache_dir,
            )
            return _source(named, source, as_json=output.as_json)
        case _:
            return _files(named, files, as_json=output.as_json)


def _mode(files: FileFlags, live: RunFlags, whole: ReferenceFlags, bytes_: SourceFlags, reading: SourceHubFlags) -> str:
    """The option that says how to verify; an empty text for the files alone.

    Raises:
        UsageError: There are several, or an option that does not go with the one.
    """
    modes = {"--run": live.run, "--reference": whole.reference, "--source": bytes_.source}
    given = [name for name, is_given in modes.items() if is_given]
    if files.key is not None and given:
        raise UsageError(f"--key and {given[0]} cannot be combined.", hint="Run them one after the other.")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot be combined.", hint="Run them one after the other.")
    mode = given[0] if given else ""
    needed = {
        "--node": (bool(live.node), "--run"),
        "--push": (whole.push, "--reference"),
        "--tensors": (bytes_.num_tensors is not None, "--source"),
        "--source-endpoint": (reading.source_endpoint is not None, "--source"),
    }
    for name, (is_given, mode_needed) in needed.items():
        if is_given and mode != mode_needed:
            raise UsageError(f"{name} needs {mode_needed}.", hint=f"Add {mode_needed}, or leave out {name}.")
    return mode


def _files(pipeline: str, files: FileFlags, *, as_json: bool) -> int:
    """Print each check and the verdict; returns 3 if anything is wrong, 1 if the stages are unproven."""
    from shardhub.usecases.verify_files import Check, VerifySettings, verify_files

    def show(check: Check) -> None:
        if not as_json:
            print(with_flags(f"{check.state:<8}  {check.what}" + (f": {check.why}" if check.why else "")), flush=True)

    settings = VerifySettings(fetch=files.fetch, key=files.key, cache_dir=files.cache_dir)
    made = verify_files(pipeline, settings, Terminal(), on_check=show)
    if as_json:
        record = {
            "pipeline_id": made.pipeline_id,
            "ok": made.ok,
            "verdict": made.verdict,
            "inexact": made.inexact,
            "checks": [{"what": one.what, "state": one.state, "why": one.why} for one in made.checks],
            "parity": [json.loads(one.model_dump_json()) for one in made.records],
        }
        print(json.dumps(record))
    else:
        print(with_flags(made.verdict))
    return int(not made.is_proven) if made.is_published else _EXIT_DIFFERENT


def _run(head: HeadSettings, *, as_json: bool) -> int:
    """Compare the live chain's tokens with the record; returns 3 if they differ although they must not."""
    from shardhub.parity import describe_class
    from shardhub.usecases.verify_run import verify_run

    made = verify_run(head, Terminal())
    first = made.differences[0] if made.differences else None
    if as_json:
        result = {
            "pipeline_id": made.pipeline_id,
            "num_tokens": made.record.num_tokens,
            "tokens_equal": made.tokens_equal,
            "first_difference": asdict(first) if first is not None else None,
            "exactness_promised": made.is_promised,
            "record": {"made_at": made.record.made_at, "class": made.record.numeric_class.model_dump()},
            "nodes": [{"at": name, "class": known.model_dump()} for name, known in made.nodes],
        }
        print(json.dumps(result))
    else:
        rows = [("record", made.record.numeric_class), *made.nodes]
        width = max(len(name) for name, _ in rows)
        for name, known in rows:
            print(f"{name:<{width}}  {describe_class(known)}, {known.cpu or 'cpu unknown'}, {known.blas or 'no BLAS'}")
        print(made.promise)
        print(f"{made.tokens_equal} of {made.record.num_tokens} tokens equal the record's")
        if first is not None:
            print(
                f"first difference: prompt {first.prompt}, token {first.token}: the record has {first.recorded}, "
                f"the chain chose {first.chosen}"
            )
    if made.differences and not made.is_promised:
        note("note: other hardware or libraries round differently; this shows how far these machines agree")
    return 0 if made.ok else _EXIT_DIFFERENT


def _reference(pipeline: str, settings: ReferenceSettings, *, as_json: bool) -> int:
    """Make a parity record, and print it and where it is kept."""
    from shardhub.manifest import encode
    from shardhub.parity import describe
    from shardhub.usecases.verify_reference import verify_reference

    made = verify_reference(pipeline, settings, Terminal())
    summary = describe(made.record)
    if as_json:
        print(json.dumps({"record": json.loads(encode(made.record)), "summary": summary, "at": made.place}))
    else:
        print(with_flags(summary))
        print(with_flags(made.place))
    return 0


def _source(pipeline: str, settings: SourceSettings, *, as_json: bool) -> int:
    """Print the tensors that differ from the source's; returns 3 if there are any."""
    from shardhub.usecases.verify_source import verify_source

    made = verify_source(pipeline, settings, Terminal())
    if as_json:
        result = {
            "pipeline_id": made.pipeline_id,
            "source": made.source,
            "ok": made.ok,
            "num_compared": made.num_compared,
            "num_tensors": made.num_tensors,
            "compared_bytes": made.compared_bytes,
            "seed": made.seed,
            "stages_not_here": list(made.absent),
            "different": [{"tensor": one.name, "why": one.why} for one in made.different],
        }
        print(json.dumps(result))
        return 0 if made.ok else _EXIT_DIFFERENT
    for one in made.different[:_DIFFERENCES_SHOWN]:
        print(f"MISMATCH  {one.name}: {one.why}")
    if len(made.different) > _DIFFERENCES_SHOWN:
        print(f"MISMATCH  {len(made.different) - _DIFFERENCES_SHOWN} more; --json lists them all")
    verdict = "all are the source's, byte for byte" if made.ok else f"{len(made.different)} of them DIFFER"
    size = size_text(made.compared_bytes)
    print(f"{made.num_compared} of {made.num_tensors} tensors ({size}) compared with {made.source}: {verdict}")
    return 0 if made.ok else _EXIT_DIFFERENT
