"""A stage's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardhub.engine.host import host_facts
from shardhub.engine.meter import Meter
from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, Limits, StageFacts, StageTime, Step

M = TypeVar("M", Counter, Histogram)

# From a tiny model's step to a large chunk on a slow machine.
STEP_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# Gauges of a stage's load: name and unit, description, and key in the load.
_GAUGES = (
    ("queue_steps", "Steps waiting to be computed.", "queued_steps"),
    ("kv_reserved_bytes", "Bytes of KV cache reserved for sessions, including parked ones.", "kv_reserved_bytes"),
    ("kv_parked_bytes", "Bytes of KV cache held by parked sessions, freed when others need them.", "kv_parked_bytes"),
    ("kv_budget_bytes", "Bytes of KV cache that the node can hold.", "kv_budget_bytes"),
    ("weight_bytes", "Bytes of weights loaded.", "weight_bytes"),
)
_FACTS = ("shardhub", "mlx", "mlx_lm", "backend", "blas", "os")


class MeteredStage(Protocol):
    """The part of an engine that the metrics need."""

    facts: StageFacts
    limits: Limits
    meter: Meter

    def load(self) -> dict[str, float]:
        """Counters and gauges."""


class StageMetrics(Collector):
    """Metrics of the stages of this process. Labels: a stage's layers, the lane, an error's class.

    Args:
        registry: Where the metrics are registered; one for each endpoint.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stages: dict[str, MeteredStage] = {}
        self._own = own = CollectorRegistry(auto_describe=False)
        labels = ["layers", "lane"]

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"shardhub_step_{name}_seconds", text, labels, buckets=STEP_BUCKETS_S, registry=own)

        self.rows = Histogram("shardhub_step_rows", "Sessions per step.", labels, buckets=ROW_BUCKETS, registry=own)
        self.compute_s = seconds("compute", "Seconds to compute a step.")
        self.wait_s = seconds("wait", "Seconds that a step waited in the queue.")
        self.send_s = seconds("send", "Seconds to hand a step's result to its stream.")
        self.tokens = Counter("shardhub_tokens", "Token ids computed, including drafts.", labels, registry=own)
        self.received = Counter(
            "shardhub_received_bytes", "Bytes of ids and tensors received in the steps computed.", labels, registry=own
        )
        self.sent = Counter("shardhub_sent_bytes", "Bytes of ids and tensors sent on.", labels, registry=own)
        self.failures = Counter(
            "shardhub_failures", "Steps and calls that were refused or failed.", ["layers", "error"], registry=own
        )
        registry.register(self)

    def watch(self, stage: MeteredStage) -> None:
        """Count the work of a stage from now on."""
        layers = f"{stage.facts.start}-{stage.facts.stop - 1}"
        self._stages[layers] = stage
        stage.meter.watch(_Watching(self, layers))

    def collect(self) -> Iterator[Metric]:
        """The counters, and gauges of the stages' current load."""
        loads = {layers: stage.load() for layers, stage in self._stages.items()}
        for name, text, key in _GAUGES:
            family = GaugeMetricFamily(f"shardhub_{name}", text, labels=["layers"])
            for layers, load in loads.items():
                family.add_metric([layers], load[key])
            yield family
        sessions = GaugeMetricFamily("shardhub_sessions", "Sessions held.", labels=["layers", "state"])
        most = GaugeMetricFamily("shardhub_max_sessions", "Sessions that the node can hold.", labels=["layers"])
        info = InfoMetricFamily("shardhub_stage", "Facts about the process that runs a stage.", labels=["layers"])
        for layers, load in loads.items():
            sessions.add_metric([layers, "active"], load["sessions"])
            sessions.add_metric([layers, "parked"], load["parked_sessions"])
            most.add_metric([layers], self._stages[layers].limits.max_sessions)
            info.add_metric([layers], {key: value for key, value in host_facts().items() if key in _FACTS})
        yield from (sessions, most, info)
        yield from self._own.collect()


class _Watching:
    """Counts for one stage."""

    def __init__(self, metrics: StageMetrics, layers: str) -> None:
        def by_lane(metric: M) -> dict[Lane, M]:
            return {lane: metric.labels(layers, lane.value) for lane in Lane}

        self._rows, self._compute_s = by_lane(metrics.rows), by_lane(metrics.compute_s)
        self._wait_s, self._send_s = by_lane(metrics.wait_s), by_lane(metrics.send_s)
        self._tokens = by_lane(metrics.tokens)
        self._received, self._sent = by_lane(metrics.received), by_lane(metrics.sent)
        self._failures = metrics.failures
        self._layers = layers

    def ran(self, step: Step, spent: StageTime) -> None:
        lane = step.lane
        self._rows[lane].observe(len(step.rows))
        self._compute_s[lane].observe(spent.compute_s)
        self._wait_s[lane].observe(spent.wait_s)
        self._tokens[lane].inc(len(step.rows) * step.length)
        self._received[lane].inc(step.size_bytes)

    def sent(self, lane: Lane, size_bytes: int, send_s: float) -> None:
        self._sent[lane].inc(size_bytes)
        self._send_s[lane].observe(send_s)

    def failed(self, error: ShardhubError) -> None:
        self._failures.labels(self._layers, type(error).__name__).inc()
