"""`shardhub search`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.terminal import Terminal, note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.usecases.search import PublishedPipeline


@flags("What is listed")
class SearchFlags:
    """Which pipelines are listed."""

    namespace: Annotated[
        str | None, typer.Option(help="List only those of this user or organisation.", metavar="USER")
    ] = None
    limit: Annotated[int, typer.Option(help="Most pipelines.", min=1)] = 100


def search(
    searching: SearchFlags,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD...", help="Words in the pipeline's or the model's name.")
    ] = None,
    *,
    output: Output,
) -> int:
    """List pipelines on the Hub with model, stages, size and parity; private ones if your token may see them."""
    from shardhub.usecases.search import SearchSettings
    from shardhub.usecases.search import search as search_hub

    settings = SearchSettings(namespace=searching.namespace, limit=searching.limit)
    pipelines = search_hub(" ".join(words or []), settings, Terminal())
    if output.as_json:
        print(json.dumps([_record(one) for one in pipelines]))
        return 0
    for one in pipelines:
        print(one.repo + ("  private" if one.private else ""))
        if one.refusal:
            print(f"    {one.refusal}")
            continue
        stages = f"{one.num_stages} stage{'s' if one.num_stages != 1 else ''}"
        origin = "  by reference" if one.by_reference else ""
        print(f"    {one.model}  {stages}  {one.num_layers} layers  {size_text(one.size_bytes)}{origin}")
        print(f"    inexact: {one.inexact}" if one.inexact else f"    {one.parity_line}")
    note(f"{len(pipelines)} pipeline{'s' if len(pipelines) != 1 else ''}")
    return 0


def _record(one: PublishedPipeline) -> dict[str, object]:
    parity = one.parity
    return {
        "repo": one.repo,
        "commit": one.commit,
        "private": one.private,
        "gated": one.gated,
        "refusal": one.refusal or None,
        "model": one.model,
        "num_stages": one.num_stages,
        "num_layers": one.num_layers,
        "size_bytes": one.size_bytes,
        "by_reference": one.by_reference,
        "parity": None
        if parity is None
        else {
            "summary": one.parity_line,
            "num_tokens": parity.num_tokens,
            "tokens_equal": parity.tokens_equal,
            "max_abs_logit_difference": parity.max_abs_logit_difference,
        },
        "inexact": one.inexact,
        "pipeline_id": one.pipeline_id,
    }
