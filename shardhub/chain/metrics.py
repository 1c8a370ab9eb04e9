"""A head's Prometheus metrics: its requests, and the stages that run in its process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shardhub.chain.local_link import LocalLink
from shardhub.chain.observers import ChainObserver, StreamObserver
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.stream import Stream
from shardhub.engine.metrics import ROW_BUCKETS, STEP_BUCKETS_S, StageMetrics
from shardhub.errors import ShardhubError
from shardhub.protocol import Lane

# A first token waits for the whole prompt, and possibly for room.
_FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class HeadMetrics(Collector, StreamObserver, ChainObserver):
    """Counts a head's requests from its creation on. Labels: a request's outcome, an error's class, the lane.

    Args:
        scheduler: The head's scheduler.
        registry: Where the metrics are registered; None makes a registry.
    """

    def __init__(self, scheduler: Scheduler, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry(auto_describe=False)
        self._scheduler = scheduler
        self._own = own = CollectorRegistry(auto_describe=False)
        self._first_token_s = Histogram(
            "shardhub_time_to_first_token_seconds",
            "Seconds from a request to its first token.",
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=own,
        )
        self._token_s = Histogram(
            "shardhub_inter_token_seconds",
            "Seconds between a stream's tokens; tokens of one step share its time.",
            buckets=_TOKEN_BUCKETS_S,
            registry=own,
        )
        self._round_s = Histogram(
            "shardhub_round_seconds",
            "Seconds that a step takes through all stages.",
            ["lane"],
            buckets=STEP_BUCKETS_S,
            registry=own,
        )
        self._round_rows = Histogram(
            "shardhub_round_rows", "Streams per step.", ["lane"], buckets=ROW_BUCKETS, registry=own
        )
        self._requests = Counter("shardhub_requests", "Requests that ended.", ["outcome"], registry=own)
        self._failures = Counter("shardhub_request_failures", "Requests that failed.", ["error"], registry=own)
        self._prompt = Counter("shardhub_prompt_tokens", "Prompt ids computed.", registry=own)
        self._reused = Counter("shardhub_reused_tokens", "Prompt ids whose KV cache was reused.", registry=own)
        self._generated = Counter("shardhub_generated_tokens", "Tokens drawn.", registry=own)
        self._drafted = Counter("shardhub_drafted_tokens", "Tokens proposed by drafters.", registry=own)
        self._accepted = Counter("shardhub_accepted_tokens", "Proposed tokens that were accepted.", registry=own)
        for outcome in ("stop", "length", "cancelled", "failed", "refused"):
            self._requests.labels(outcome)
        scheduler.watch(self)
        scheduler.chain.watch(self)
        self.registry.register(self)
        stages = StageMetrics(self.registry)
        for link in scheduler.chain.links:
            if isinstance(link, LocalLink):
                stages.watch(link.engine)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The counters, and gauges of the current state."""
        scheduler, chain = self._scheduler, self._scheduler.chain
        for name, text, value in (
            ("waiting_requests", "Requests waiting for a free session.", scheduler.num_waiting),
            ("open_requests", "Requests waiting or running.", len(scheduler.streams)),
            ("decoding_requests", "Requests in decode steps.", scheduler.num_decoding),
            ("kept_prefixes", "Finished sequences kept for prompts that start with them.", len(scheduler.prefixes)),
        ):
            yield GaugeMetricFamily(f"shardhub_{name}", text, value=value)
        yield CounterMetricFamily(
            "shardhub_head_sent_bytes", "Bytes of ids and tensors sent to nodes.", value=chain.sent_bytes
        )
        yield CounterMetricFamily(
            "shardhub_head_received_bytes",
            "Bytes of tensors passed on between nodes by this process.",
            value=chain.received_bytes,
        )
        yield from self._own.collect()

    def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None:
        """Count a step that came round."""
        self._round_s.labels(lane.value).observe(seconds)
        self._round_rows.labels(lane.value).observe(num_rows)

    def drew(self, stream: Stream, num_tokens: int, seconds: float) -> None:
        """Count new tokens and observe their time."""
        self._generated.inc(num_tokens)
        if stream.num_generated == num_tokens:
            self._first_token_s.observe(seconds)
            return
        for _ in range(num_tokens):
            self._token_s.observe(seconds / num_tokens)

    def ended(self, stream: Stream) -> None:
        """Count a request that ended."""
        if stream.is_served:
            self._prompt.inc(len(stream.request.prompt))
            self._reused.inc(stream.num_reused)
        self._drafted.inc(stream.num_drafted)
        self._accepted.inc(stream.num_accepted)
        if stream.error is not None:
            self._failures.labels(type(stream.error).__name__).inc()
        self._requests.labels("failed" if stream.error is not None else stream.finish or "cancelled").inc()

    def refused(self, error: ShardhubError) -> None:
        """Count a request that was refused."""
        self._failures.labels(type(error).__name__).inc()
        self._requests.labels("refused").inc()
