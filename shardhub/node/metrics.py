"""The HTTP endpoint for Prometheus, and the metrics of weight files."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardhub.address import Address
from shardhub.errors import AddressError, UsageError
from shardhub.hub.traffic import Traffic
from shardhub.listening import check_reach

_DEFAULT_HOST = "127.0.0.1"


class TrafficMetrics(Collector):
    """Metrics of weight files that this process fetches, and hands to others."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        """The counts since the start."""
        fetched = CounterMetricFamily(
            "shardhub_fetched_bytes",
            "Bytes of the weight files needed, by where they came from.",
            labels=["place"],
        )
        for place, num_bytes in self._traffic.fetched.items():
            fetched.add_metric([place.value], num_bytes)
        shared = CounterMetricFamily("shardhub_shared_bytes", "Bytes of weight files handed to other nodes.")
        shared.add_metric([], self._traffic.sent_bytes)
        refused = CounterMetricFamily(
            "shardhub_share_refusals", "Requests for weight files that were refused or broke off.", labels=["error"]
        )
        for error, count in self._traffic.refused.items():
            refused.add_metric([error], count)
        yield from (fetched, shared, refused)


class MetricsEndpoint:
    """Answers `GET /metrics` in a thread of its own; a context manager.

    Args:
        listen: `HOST:PORT`; the default host is loopback, and port 0 takes a free port.

    Attributes:
        registry: The metrics served: this process's own, and those registered here.
        address: Where it listens.

    Raises:
        UsageError: `listen` is not an address.
        AddressError: The endpoint cannot listen there.
    """

    def __init__(self, listen: str) -> None:
        at = parse_listen(listen)
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        try:
            self._server, self._thread = start_http_server(at.port, addr=at.host, registry=self.registry)
        except OSError as error:
            raise AddressError(
                f"Cannot listen for metrics on {listen}.",
                why=f"{error.strerror or error}.",
                hint="Choose another port, or 0 for any free one.",
            ) from error
        self.address = Address(at.host, self._server.server_port)

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def check_metrics(listen: str, *, insecure: bool) -> None:
    """Check that an endpoint stays on loopback unless `insecure`: it has neither TLS nor a key.

    Args:
        listen: As `MetricsEndpoint` takes it.

    Raises:
        UsageError: `listen` is not an address.
        AddressError: The host is not loopback, or not an address.
    """
    check_reach(
        parse_listen(listen).host,
        is_safe=insecure,
        what="answer metrics",
        why="Metrics are served without TLS or a key, so anyone who reaches this address can read what the node does.",
        hint="Listen on 127.0.0.1 or, if you trust the network, add `insecure_metrics`.",
    )


def parse_listen(text: str) -> Address:
    """Parse `HOST:PORT`, `[IPV6]:PORT`, `:PORT` or `PORT`.

    Raises:
        UsageError: The text has another form.
    """
    try:
        return Address.parse(text if ":" in text else f":{text}", host=_DEFAULT_HOST, may_be_zero=True)
    except AddressError as error:
        raise UsageError(f"`metrics` {text} is not HOST:PORT.", hint="Write it like 127.0.0.1:9400.") from error
