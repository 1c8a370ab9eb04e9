"""The command that verifies a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheDir, Memory, Node, NoLocal, PipelineFlags, Seed, Tls


@flags("Bytes and proof")
class FileFlags:
    """How a pipeline's files are checked."""

    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch missing shards.")] = False
    key: Annotated[
        str | None, typer.Option("--key", help="Public key that must have signed the manifest.", metavar="KEY|FILE.pub")
    ] = None
    cache_dir: CacheDir = None


@flags("Numbers on live nodes")
class RunFlags:
    """How a live chain is checked."""

    run: Annotated[bool, typer.Option("--run", help="Feed a parity record's prompts to the live chain.")] = False
    node: Node = None
    tls: Tls = None
    insecure_lan: Annotated[
        bool,
        typer.Option("--insecure-lan", help="Reach nodes on other machines without TLS, on a network you trust."),
    ] = False
    no_local: NoLocal = False


@flags("Numbers of the whole model")
class ReferenceFlags:
    """How stages are compared with the whole model."""

    reference: Annotated[
        bool, typer.Option("--reference", help="Compare the stages with the whole model here; keep the record.")
    ] = False
    push: Annotated[bool, typer.Option("--push", help="With --reference: add the record to the pipeline's repo.")] = (
        False
    )
    num_tokens: Annotated[
        int, typer.Option("--tokens", help="With --reference: tokens to decode.", min=1, max=4096)
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
    output: Output,
) -> int:
    """Check a pipeline's bytes and proof; with an option, its numbers on live nodes or its source's bytes."""
    from shardhub.cli.verify import VerifyOptions
    from shardhub.cli.verify import verify as command

    options = VerifyOptions(
        pipeline=pipeline.named("verify"),
        fetch=files.fetch,
        run=live.run,
        nodes=tuple(live.node or ()),
        no_local=live.no_local,
        reference=whole.reference,
        push=whole.push,
        num_tokens=whole.num_tokens,
        source=bytes_.source,
        num_tensors=bytes_.num_tensors,
        seed=bytes_.seed,
        source_folder=bytes_.source_folder,
        memory=whole.memory,
        cache_dir=files.cache_dir,
        tls=live.tls,
        insecure_lan=live.insecure_lan,
        key=files.key,
        as_json=output.as_json,
    )
    return command(options)
