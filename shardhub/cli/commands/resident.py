"""`shardhub resident`: the process that stays on a machine of a cluster, and starts and ends its nodes."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags, flattened
from shardhub.cli.help import Command, make_group
from shardhub.cli.machine_flags import NoDiscovery
from shardhub.cli.options import Tls
from shardhub.cli.run import error_record
from shardhub.cli.run import run as carry_out
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.naming import RESIDENT_PORT
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.usecases.cluster_place import ClusterPlace
    from shardhub.usecases.resident import ResidentSettings, RunningResident
    from shardhub.usecases.resident_process import ResidentStatus


@flags("Machine")
class PlaceFlags:
    """Which certificates the machine uses."""

    tls: Tls = None

    def place(self) -> ClusterPlace:
        """The machine's folders."""
        from pathlib import Path

        from shardhub.usecases.cluster_place import ClusterPlace

        return ClusterPlace(tls=None if self.tls is None else Path(self.tls))


@flags("Machine")
class ResidentFlags(PlaceFlags):
    """Where the resident listens, and whom it calls."""

    name: Annotated[
        str | None, typer.Option(help="Name of this machine; by default that of its certificate, or its host name.")
    ] = None
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; all of them by default with a certificate, else loopback."),
    ] = None
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = RESIDENT_PORT
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without TLS, on a network you trust.")
    ] = False
    seed: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of a machine of the cluster, where others are not found; repeatable.", metavar="HOST"
        ),
    ] = None

    no_discovery: NoDiscovery = False

    def settings(self) -> ResidentSettings:
        """The same for the library."""
        from shardhub.address import Address
        from shardhub.usecases.resident import ResidentSettings

        seeds = tuple(str(Address.parse(text, port=RESIDENT_PORT)) for text in self.seed or ())
        return ResidentSettings(
            place=self.place(),
            name=self.name,
            host=self.host,
            port=self.port,
            insecure_lan=self.insecure_lan,
            seeds=seeds,
            is_discovered=not self.no_discovery,
        )


def run(machine: ResidentFlags, output: Output) -> int:
    """Run the resident here until SIGTERM, which leaves its nodes to the next one; Ctrl-C ends them too."""
    from shardhub.usecases.companions import CompanySettings, company
    from shardhub.usecases.resident import run_resident

    _log_with_dates(is_debugging=output.debug)

    def ready(running: RunningResident) -> None:
        if output.as_json:
            announce(json.dumps({"name": running.name, "address": running.address, "tls": running.trust is not None}))
        else:
            announce(f"{running.name}: resident at {running.address}")

    settings = machine.settings()
    return run_resident(
        settings, companions=[company(CompanySettings(is_discovered=settings.is_discovered))], on_ready=ready
    )


def start(machine: ResidentFlags, output: Output) -> int:
    """Start the resident in the background, unless one runs; it ends with a reboot (see `install`)."""
    from shardhub.usecases.resident_process import ensure_running

    status = ensure_running(machine.settings(), Terminal())
    _show(status, output)
    if not output.as_json:
        note("It ends when this machine is rebooted. To have it start then: shardhub resident install")
    return 0


def install(machine: ResidentFlags, output: Output) -> int:
    """Have the resident start with this machine, and start it: a systemd unit, or on a Mac a launchd daemon.

    With sudo, or on a Mac, it is the system's service, and runs as you; else it is your own.
    """
    from shardhub.usecases.resident_service import install_resident

    installed = install_resident(machine.settings())
    if output.as_json:
        print(json.dumps({"file": str(installed.path), "remark": installed.remark}))
        return 0
    print(installed.path)
    if installed.remark:
        note(installed.remark)
    note("Look at it: shardhub resident status")
    return 0


def uninstall(machine: PlaceFlags, output: Output) -> int:
    """End the resident and its nodes, and have it start no more with this machine."""
    from shardhub.usecases.resident_service import uninstall_resident

    removed = uninstall_resident(machine.place())
    if output.as_json:
        print(json.dumps({"file": None if removed is None else str(removed)}))
    else:
        print(f"Removed {removed}." if removed else "No service of the resident is installed on this machine.")
    return 0


@flags("Machine")
class StopFlags(PlaceFlags):
    """What is left running."""

    keep_nodes: Annotated[
        bool, typer.Option("--keep-nodes", help="Leave its nodes running; the next resident takes them over.")
    ] = False


def stop(machine: StopFlags, output: Output) -> int:
    """End the resident and its nodes; a node first finishes its sessions, for up to 30 seconds."""
    from shardhub.usecases.resident_process import stop_resident

    was_running = stop_resident(machine.place(), keep_nodes=machine.keep_nodes)
    if output.as_json:
        print(json.dumps({"was_running": was_running}))
    else:
        print("The resident has ended." if was_running else "No resident runs on this machine.")
    return 0


def status(machine: PlaceFlags, output: Output) -> int:
    """Show whether the resident runs, and its nodes; exit code 1 if it does not run."""
    from shardhub.usecases.resident_process import resident_status

    place = machine.place()
    current = resident_status(place)
    _show(current, output, place)
    return 0 if current.is_running else 1


def logs(machine: PlaceFlags, output: Output) -> int:
    """Print the log of a resident that runs in the background."""
    from shardhub.usecases.resident_process import resident_log

    text = resident_log(machine.place())
    print(json.dumps({"log": text}) if output.as_json else text, end="\n" if output.as_json else "")
    return 0


def measure(machine: PlaceFlags, output: Output) -> int:
    """Measure this machine's memory and speed again, while it has little else to do; the resident does so once."""
    from shardhub.manifest import encode
    from shardhub.usecases.gauge import measure as measure_machine

    measured = measure_machine(machine.place().folder.path)
    if output.as_json:
        print(encode(measured).decode())
        return 0
    print(f"{measured.chip} ({measured.backend})")
    print(f"nodes may take {size_text(measured.budget_bytes)}")
    print(f"reads quantised weights at {size_text(int(measured.read_bytes_per_s))}/s")
    print(f"reads other weights at {size_text(int(measured.read_dense_bytes_per_s))}/s")
    print(f"takes {measured.step_s * 1000:.3g} ms a step beside reading")
    return 0


def read_files(output: Output) -> int:
    """Read the weight files of an order on stdin into the cache, as the resident does for `up`."""
    from shardhub.usecases.reading import answer_order

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    return answer_order(sys.stdin.buffer.read(), write)


def _show(status: ResidentStatus, output: Output, place: ClusterPlace | None = None) -> None:
    if output.as_json:
        record = {
            "pid": status.pid,
            "address": status.address,
            "ready": status.is_ready,
            "error": None if status.failure is None else error_record(status.failure),
            "log": str(status.log),
        }
        print(json.dumps(record))
        return
    if not status.is_running:
        print("No resident runs on this machine.")
        if status.failure is not None:
            note(f"The last one ended: {status.failure}")
        note("Start it: shardhub resident start")
        return
    print(
        f"The resident runs as process {status.pid}"
        + (f", at {status.address}." if status.address else ", and starts.")
    )
    if place is None:
        return
    from shardhub.usecases.resident_service import installed_file

    service = installed_file()
    note(f"It starts with this machine: {service}" if service else "It ends when this machine is rebooted.")
    if status.is_ready:
        _show_machine(place)


def _show_machine(place: ClusterPlace) -> None:
    """Print what the resident says of its machine."""
    from shardhub.usecases.cluster import ClusterSettings, open_cluster

    with open_cluster(ClusterSettings(place=place)) as cluster:
        state = cluster.own()
    facts = state.facts
    print(f"{state.name} ({facts.role}): {size_text(facts.budget_bytes)} of {size_text(facts.memory_bytes)} for nodes")
    for node in state.nodes:
        doing = f", {node.doing}" if node.doing else ""
        print(f"  {node.pipeline}: layers {node.start} to {node.stop - 1}, {node.phase.value}{doing}")
        if node.failure is not None:
            print(f"    it ended: {node.failure.as_error()}")
    for member in state.members:
        seen = "answers" if member.is_reachable else f"last seen {dt.datetime.fromtimestamp(member.seen_at):%F %T}"
        print(f"  {member.name}: {seen}")
    for remark in state.remarks:
        note(remark)


def _log_with_dates(*, is_debugging: bool) -> None:
    """Have the log say when: it is read long after."""
    root = logging.getLogger()
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if not is_debugging:
        for name in ("resident", "discovery", "usecases.companions", "security.desk"):
            logging.getLogger(f"shardhub.{name}").setLevel(logging.INFO)


resident_app = make_group(
    "resident",
    "The process that stays on a machine of a cluster, and starts and ends its nodes; without a command, runs it here.",
    no_args_is_help=False,
    invoke_without_command=True,
)
RESIDENT_COMMANDS: tuple[Callable[..., int], ...] = (run, start, stop, status, logs, install, uninstall, measure)
for command in RESIDENT_COMMANDS:
    resident_app.command(cls=Command)(flattened(command))
resident_app.command("read-files", cls=Command, hidden=True)(flattened(read_files))


@resident_app.callback()
def foreground(context: typer.Context) -> None:
    """Run the resident here, if no command is given."""
    if context.invoked_subcommand is None:
        carry_out(lambda: run(ResidentFlags(), Output()))
