"""A cluster from its commands: machines in network namespaces, each with a home of its own and no address typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from shardhub.manifest import encode
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.gauge import MEASURED_FILE
from tests import namespaces
from tests.residents import MEASURED
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not namespaces.can_make(), reason="networks of its own need Linux namespaces")


class Person:
    """Somebody at a machine.

    Args:
        machine: The machine.
        home: Its home folder.
    """

    def __init__(self, machine, home):
        self._machine = machine
        home.mkdir()
        folders = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("CONFIG", "STATE", "CACHE", "DATA")}
        unset = {"SHARDHUB_TLS": "", "SHARDHUB_STATE": "", "SHARDHUB_NODES": "", "SHARDHUB_CACHE": str(home / "cache")}
        self._environment = {**os.environ, **folders, **unset, "HOME": str(home)}
        # As if the resident had run before: measuring takes the processor for a while.
        state = ClusterPlace(state=home / "STATE" / "shardhub").folder
        (state.path / MEASURED_FILE).write_bytes(encode(MEASURED))

    def types(self, *words, fails=0):
        """Run a command, and return what it prints."""
        done = subprocess.run(
            self._machine.command(sys.executable, "-m", "shardhub", *words),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == fails, done.stderr
        return done.stdout if not fails else done.stderr

    def answering(self):
        """The machines that answer."""
        with_code = subprocess.run(
            self._machine.command(sys.executable, "-m", "shardhub", "machines", "--json"),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return {one["name"] for one in json.loads(with_code.stdout) if one["reachable"]}


@contextmanager
def people(tmp_path, *names, has_router=False):
    """Machines with a person at each; their residents end with the block."""
    with namespaces.network(*names, has_router=has_router) as machines:
        made = {name: Person(machine, tmp_path / name) for name, machine in machines.items()}
        try:
            yield made, machines
        finally:
            for person in made.values():
                person.types("resident", "stop")


def test_a_cluster_forms_with_one_line_and_follows_addresses(tmp_path):
    """One command a machine; a machine that gets another address is found there; another cluster stays apart."""
    with people(tmp_path, "studio", "mini", "stranger") as (at, machines):
        command = at["studio"].types("cluster", "init", "--name", "studio").split()
        at["mini"].types(*command[1:], "--name", "mini", "--serve-only")
        at["stranger"].types("cluster", "init", "--name", "mini")
        wait_until(lambda: at["studio"].answering() == at["mini"].answering() == {"studio", "mini"})
        machines["mini"].run("ip", "address", "delete", "10.77.0.2/24", "dev", "eth0")
        machines["mini"].run("ip", "address", "add", "10.77.0.50/24", "dev", "eth0")
        wait_until(lambda: at["studio"].answering() == {"studio", "mini"})
        assert "mini" in at["studio"].types("machines")
        assert "belongs to a cluster already" in at["stranger"].types(*command[1:], fails=2)
        assert at["stranger"].answering() == {"mini"}
        at["mini"].types("cluster", "leave")
        wait_until(lambda: "mini" not in at["studio"].types("machines"))


def test_a_cluster_forms_over_a_router(tmp_path):
    """Where nothing is heard of other machines, the line and what machines tell each other are enough."""
    with people(tmp_path, "studio", "mini", "box", has_router=True) as (at, _):
        command = at["studio"].types("cluster", "init").split()
        for name in ("mini", "box"):
            at[name].types(*command[1:], "--name", name)
        wait_until(lambda: len(at["mini"].answering() & at["box"].answering()) == 3)
