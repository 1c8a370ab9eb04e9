"""`shardhub up`, `down` and `ps`: what the machines of a cluster serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import ModelFlags, QuantiseFlags, Tls, Yes
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal, confirm, note
from shardhub.sizes import rate_text, size_text

if TYPE_CHECKING:
    from shardhub.usecases.cluster import ClusterSettings
    from shardhub.usecases.cluster_view import ServedPipeline
    from shardhub.usecases.fitting import Fitting
    from shardhub.usecases.up_plan import PlacingSettings


@flags("This machine")
class OwnFlags:
    """This machine's part in its cluster."""

    tls: Tls = None

    def settings(self) -> ClusterSettings:
        """The same for the library."""
        from shardhub.usecases.cluster import ClusterSettings
        from shardhub.usecases.cluster_place import ClusterPlace

        return ClusterSettings(place=ClusterPlace(tls=None if self.tls is None else Path(self.tls)))


@flags("Where it is placed")
class PlacingFlags:
    """What a model is placed for."""

    objective: Annotated[
        Literal["latency", "throughput"],
        typer.Option("--for", help="The least time a token of one stream, or the most tokens a second."),
    ] = "latency"
    context: Annotated[
        int | None,
        typer.Option(help="Positions of a session that there must be room for; by default 8192, or the model's own."),
    ] = None
    sessions: Annotated[int, typer.Option(help="Sessions that there must be room for at once.", min=1)] = 1
    replicas: Annotated[int, typer.Option(help="Number of chains, each on machines of its own.", min=1)] = 1
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Stages of a pipeline, or layers of a model, for a machine; repeatable.", metavar="NAME=K[-L]"
        ),
    ] = None
    no_heal: Annotated[
        bool, typer.Option("--no-heal", help="If a machine is gone, do not place its layers on others.")
    ] = False

    def placing(self) -> PlacingSettings:
        """The same for the library."""
        from shardhub.usecases.up_plan import PlacingSettings

        return PlacingSettings(
            for_throughput=self.objective == "throughput",
            sessions=self.sessions,
            replicas=self.replicas,
            on=tuple(self.on or ()),
            heals=not self.no_heal,
        )


@flags("What it is")
class NamingFlags:
    """How the cluster knows it, and what its nodes are started for."""

    name: Annotated[str | None, typer.Option(help="Name in the cluster; by default the model's.")] = None
    max_sessions: Annotated[
        int | None,
        typer.Option("--max-sessions", help="Most sessions at once; by default 16, or --sessions if more.", min=1),
    ] = None
    kv_bits: Annotated[int | None, typer.Option("--kv-bits", help="Keep K and V in 4 or 8 bits.")] = None


@flags("What happens")
class AskingFlags:
    """What is done with the placement."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the table, and do nothing.")] = False
    yes: Yes = False
    push: Annotated[
        bool, typer.Option("--push", help="Also publish a plain model's pipeline, by reference to the model's repo.")
    ] = False


def up(
    placing: PlacingFlags,
    naming: NamingFlags,
    asking: AskingFlags,
    quantising: QuantiseFlags,
    reading: SourceHubFlags,
    leaving: ModelFlags,
    own: OwnFlags,
    output: Output,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model or pipeline: a Hub id, its URL, or a folder; without it, what fits is listed."
        ),
    ] = None,
) -> int:
    """Bring a model up on the machines of the cluster, each with its own layers; without a model, list what fits."""
    from shardhub.cli.machines_display import MachinesDisplay
    from shardhub.cli.placing_table import record, render
    from shardhub.cli.tables import text_of
    from shardhub.usecases.cluster import open_cluster
    from shardhub.usecases.cluster_cut import ClusterCutSettings
    from shardhub.usecases.order_follower import follow
    from shardhub.usecases.up import Up, UpSettings, publish_cut
    from shardhub.usecases.up_checks import check_pushable

    settings = UpSettings(
        cutting=ClusterCutSettings(
            name=naming.name,
            context=placing.context,
            ignore_code=leaving.ignore_code,
            ignore_fields=leaving.ignore_fields,
            source_endpoint=reading.source_endpoint,
            quantisation=quantising.quantisation(),
        ),
        placing=placing.placing(),
        max_sessions=naming.max_sessions,
        kv_bits=naming.kv_bits,
    )
    terminal = Terminal()
    with open_cluster(own.settings()) as cluster:
        if model is None:
            from shardhub.usecases.fitting import list_fitting

            return _show_fitting(list_fitting(cluster, settings, terminal), output)
        placed = Up(cluster, model, settings, terminal)
        plan = placed.plan
        if asking.push:
            check_pushable(plan.placeable, terminal)
        if output.as_json and asking.dry_run:
            print(json.dumps(record(plan)))
            return 0
        if not output.as_json:
            print(text_of(render(plan)), flush=True)
        if asking.dry_run:
            return 0
        if not asking.yes:
            question = "Bring it up?" if plan.replaces is None else f"Bring it up in the place of {plan.replaces}?"
            confirm(question, f"{plan.placeable.name} was not brought up.")
        display = MachinesDisplay()
        try:
            deployment = placed.order(display)
            served = follow(cluster, deployment, display)
        finally:
            display.close()
    if asking.push:
        publication = publish_cut(plan, settings, assume_yes=asking.yes, watcher=terminal)
        note(f"published as {publication.pipeline}")
    if output.as_json:
        print(json.dumps({**record(plan), "pipeline": _record(served)}))
    else:
        print(f"{served.name} is up on {', '.join(dict.fromkeys(node.machine for node in served.nodes))}.")
        note("Talk to it: shardhub chat")
    return 0


def down(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, as `shardhub ps` shows it.")],
    own: OwnFlags,
    output: Output,
) -> int:
    """Take a pipeline down on all machines; sessions that run have up to 30 seconds to end."""
    from shardhub.usecases.cluster import open_cluster
    from shardhub.usecases.up import down as take_down

    with open_cluster(own.settings()) as cluster:
        deployment = take_down(cluster, name)
    print(json.dumps({"name": deployment.name}) if output.as_json else f"{deployment.name} is taken down.")
    return 0


def ps(own: OwnFlags, output: Output) -> int:
    """Show what is up in the cluster: each pipeline's stages, their machines, and what they do."""
    from shardhub.cli.tables import text_of
    from shardhub.usecases.cluster import open_cluster

    with open_cluster(own.settings()) as cluster:
        pipelines = cluster.pipelines()
        remarks = cluster.own().remarks
    if output.as_json:
        print(json.dumps([_record(pipeline) for pipeline in pipelines]))
        return 0
    for remark in remarks:
        note(remark)
    print(text_of(_table(pipelines)) if pipelines else "Nothing is up.")
    return 0


def _table(pipelines: tuple[ServedPipeline, ...]) -> Any:
    from rich.table import Table

    from shardhub.usecases.deployed import progress_of

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("pipeline", "replica", "layers", "machine", "address", "state"):
        table.add_column(column, no_wrap=True)
    for pipeline in pipelines:
        for node in pipeline.nodes:
            progress = progress_of(node)
            share = f" ({progress.done_bytes / progress.total_bytes:.0%})" if progress.total_bytes else ""
            layers = f"{node.start}-{node.stop - 1}" if node.stop - node.start > 1 else str(node.start)
            cells = (pipeline.name, str(node.replica), layers, node.machine, node.address or "-")
            table.add_row(*cells, f"{progress.doing}{share}", style="" if progress.is_ready else "yellow")
    return table


def _record(pipeline: ServedPipeline) -> dict[str, Any]:
    """A pipeline that is up as JSON-able data."""
    from shardhub.usecases.deployed import progress_of

    return {
        "name": pipeline.name,
        "pipeline_id": pipeline.deployment.pipeline_id,
        "ordered_by": pipeline.deployment.member,
        "is_ready": pipeline.is_ready,
        "nodes": [
            {
                "machine": node.machine,
                "replica": node.replica,
                "start": node.start,
                "stop": node.stop,
                "address": node.address,
                "state": progress_of(node).doing,
                "done_bytes": progress_of(node).done_bytes,
                "total_bytes": progress_of(node).total_bytes,
            }
            for node in pipeline.nodes
        ],
    }


def _show_fitting(fitting: tuple[Fitting, ...], output: Output) -> int:
    if output.as_json:
        rows = (
            {"name": each.name, "tokens_per_s": each.tokens_per_s, "machines": each.machines, "why_not": each.why_not}
            for each in fitting
        )
        print(json.dumps(list(rows)))
        return 0
    for each in fitting:
        if each.tokens_per_s is None:
            print(f"{each.name}\n    does not fit: {each.why_not}")
        else:
            size = size_text(each.size_bytes)
            print(f"{each.name}\n    {size}, {rate_text(each.tokens_per_s)} tokens/s on {', '.join(each.machines)}")
    if not fitting:
        print("No pipeline is in the cache or on the Hub.")
    note("Any model of the Hub can be brought up, too: shardhub up ORG/NAME")
    return 0
