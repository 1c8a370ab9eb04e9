"""The metrics of all chains of a gateway as one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardhub.gateway.service import Service


def metrics_text(services: Sequence[Service]) -> bytes:
    """The metrics of chains in Prometheus's text format, with the labels `model` and `chain`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(services))
    return generate_latest(registry)


class _Joined(Collector):
    """Joins the samples of each metric, since a text must name a metric only once."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        joined: dict[str, Metric] = {}
        for service in self._services:
            labels = {"model": service.model_names[0], "chain": service.chain}
            for metric in service.metrics.registry.collect():
                own = joined.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                own.samples += [sample._replace(labels=labels | sample.labels) for sample in metric.samples]
        yield from joined.values()
