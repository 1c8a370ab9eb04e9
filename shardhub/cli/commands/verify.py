"""The command that proves a pipeline again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.cache import CacheDir
from shardhub.cli.options import (
    Debug,
    InsecureLan,
    Json,
    ManifestOption,
    Memory,
    Node,
    NoLocal,
    PipelineArgument,
    Seed,
    Tls,
)
from shardhub.cli.run import run


def verify(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the shards that are not here.")] = False,
    run_: Annotated[bool, typer.Option("--run", help="Feed a parity record's prompts to the live chain.")] = False,
    node: Node = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    key: Annotated[
        str | None, typer.Option("--key", help="Public key that must have signed it.", metavar="KEY|FILE.pub")
    ] = None,
    no_local: NoLocal = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Run the stages against the whole model here; keep the record.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="With --reference: add the record to the pipeline's repo.")
    ] = False,
    num_tokens: Annotated[
        int, typer.Option("--tokens", help="With --reference: tokens to decode.", min=1, max=4096)
    ] = 64,
    source: Annotated[bool, typer.Option("--source", help="Compare tensors with the source's bytes.")] = False,
    num_tensors: Annotated[
        int | None, typer.Option("--tensors", help="With --source: so many, drawn at random.", min=1, metavar="N")
    ] = None,
    seed: Seed = None,
    source_folder: Annotated[
        Path | None, typer.Option(help="Folder of the model the pipeline was made from.", metavar="DIR")
    ] = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check a pipeline's bytes and its proof; with an option its numbers on live nodes, or the source's bytes."""
    from shardhub.cli.verify import VerifyOptions
    from shardhub.cli.verify import verify as command

    options = VerifyOptions(
        pipeline=pipeline,
        manifest=manifest,
        fetch=fetch,
        run=run_,
        nodes=node,
        no_local=no_local,
        reference=reference,
        push=push,
        num_tokens=num_tokens,
        source=source,
        num_tensors=num_tensors,
        seed=seed,
        source_folder=source_folder,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        key=key,
        as_json=json_,
    )
    run(lambda: command(options), debug=debug, as_json=json_)
