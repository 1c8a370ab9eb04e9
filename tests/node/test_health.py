"""The port at which supervisors ask whether a node is alive and ready."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import shardhub
from shardhub.node.health import LIVE, READY
from shardhub.security.certificates import Role
from tests import cut, ports
from tests.security.cluster import Cluster
from tests.watching import Listener

SERVING, NOT_SERVING = (getattr(health_pb2.HealthCheckResponse, name) for name in ("SERVING", "NOT_SERVING"))
TIMEOUT_S = 60


def status(port: int, service: str) -> int:
    """Ask as Kubernetes does: a plain channel, one call."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S).status


def refusal(port: int, service: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        status(port, service)
    return caught.value.code()


class Probing(Listener):
    """Asks a port when the node reports its first activity."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.while_loading: list[int] = []

    def doing(self, text: str) -> None:
        if not self.while_loading:
            self.while_loading = [status(self.port, READY), status(self.port, LIVE)]
        super().doing(text)


def test_node_with_tls_answers_plain_checks(tmp_path) -> None:
    """While it loads, a node is alive and not ready; checks need no TLS, although its own port does."""
    pipeline = cut.tiny_pipeline(tmp_path, (2,))
    folder = Cluster(tmp_path / "cluster").issue("mini", Role.NODE)
    with ports.kept() as port:
        watcher = Probing(port)
        settings = shardhub.ServeSettings(tls=folder, health_port=port)
        with shardhub.serve(cut.shard_folder(pipeline, 0), settings, watcher) as node:
            assert watcher.while_loading == [NOT_SERVING, SERVING]
            assert node.facts.health == f"127.0.0.1:{port}"
            assert (status(port, READY), status(port, LIVE)) == (SERVING, SERVING)
            assert refusal(port, "shardhub.v1.Node") == grpc.StatusCode.NOT_FOUND
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
                with pytest.raises(grpc.RpcError) as caught:
                    next(stream)
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert refusal(port, LIVE) == grpc.StatusCode.UNAVAILABLE
