"""Residents for tests: `shardhub resident run` in processes, each with a state folder and a certificate of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shardhub.manifest import NumericClass, encode
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.machine import KnownMachine
from shardhub.security.certificates import Role
from shardhub.shard import read_pipeline
from shardhub.usecases.cluster import Cluster as OpenCluster
from shardhub.usecases.cluster import ClusterSettings, open_cluster
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.gauge import MEASURED_FILE, MeasuredMachine, measured_versions
from tests.nodes import Announced
from tests.security.cluster import Cluster

MEASURED = MeasuredMachine(
    versions=measured_versions(),
    chip="a chip",
    backend="cpu",
    numeric_class=NumericClass(mlx="0", backend="cpu", chip="x", cpu="a chip", os="Linux", blas="reference"),
    budget_bytes=8 << 30,
    read_bytes_per_s=10e9,
    read_dense_bytes_per_s=10e9,
    step_s=0.001,
)


class ResidentProcess(Announced):
    """A resident, with a state folder of its own.

    Args:
        folder: For its state.
        tls: Folder of its certificate; None runs it without TLS, on loopback.
        seeds: Addresses of others.
        options: More options.
        env: Further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: Path | None = None,
        seeds: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.place = ClusterPlace(state=folder, tls=tls)
        measured = self.place.folder.path / MEASURED_FILE
        measured.write_bytes(encode(MEASURED))
        words = ["--no-discovery", *(["--tls", str(tls)] if tls is not None else []), *options]
        for seed in seeds:
            words += ["--seed", seed]
        own = {"SHARDHUB_STATE": str(folder), "SHARDHUB_BLAS": "reference"}
        super().__init__("resident run", *words, env={**own, **(env or {})})

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @contextmanager
    def cluster(self) -> Iterator[OpenCluster]:
        """The cluster as commands on this machine see it."""
        with open_cluster(ClusterSettings(place=self.place)) as cluster:
            yield cluster

    def kill(self) -> None:
        """Send SIGKILL; its nodes live on."""
        self.process.kill()
        self.wait()


def end_all(residents: Iterable[ResidentProcess]) -> None:
    """End residents and their nodes, side by side."""
    running = list(residents)
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGINT)
    for each in running:
        each.wait()


def member(
    cluster: Cluster,
    folder: Path,
    name: str,
    *,
    seeds: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    env: Mapping[str, str] | None = None,
) -> ResidentProcess:
    """A resident of a machine with a member's certificate."""
    tls = cluster.folder / f"{name}-{Role.MEMBER.value}"
    if not tls.exists():
        cluster.issue(name, Role.MEMBER)
    options = ("--host", host, "--port", str(port))
    return ResidentProcess(folder / name, tls=tls, seeds=seeds, options=options, env=env)


def deployed(
    pipeline: Path, *machines: str, counter: int = 1, by: str = "studio", ends: tuple[int, ...] = ()
) -> Deployment:
    """A deployment of a cut pipeline on machines, in order.

    Args:
        ends: Layers at which their stages end; those of the pipeline's shards by default.
    """
    manifest = read_pipeline(pipeline).manifest
    borders = (0, *(entry.stop for entry in manifest.stages))
    stops = ends or borders[1:]
    return Deployment(
        name="pipe",
        counter=counter,
        member=by,
        pipeline_id=manifest.pipeline_id,
        place=str(pipeline),
        capacity={"context": 64},
        borders=borders,
        assignments=tuple(
            Assignment(machine=name, start=start, stop=stop)
            for name, start, stop in zip(machines, (0, *stops), stops, strict=False)
        ),
    )


def reached(members: tuple[KnownMachine, ...]) -> set[str]:
    """Names of the machines that a resident reaches."""
    return {each.name for each in members if each.is_reachable}
