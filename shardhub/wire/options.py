"""gRPC channel options; with the defaults, a call to a frozen or partitioned peer waits for ever.

Measured: with keepalive_time and keepalive_timeout alone it took 62 s to notice a frozen peer, because gRPC's core
waits `grpc.http2.ping_timeout_ms` (60 s by default); with all three set it took their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

Options = list[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Detection of silent peers, in seconds: ping after `ping_s`, give up `timeout_s` later."""

    ping_s: float = 10.0
    timeout_s: float = 5.0


DEFAULT_LIVENESS = Liveness()
# Shortest time between pings that a server accepts; must be below every client's `ping_s`, or the server answers "too
# many pings".
_MIN_PING_MS = 500
_FIRST_BACKOFF_MS, _MAX_BACKOFF_MS = 200, 2000
# gRPC's minimum backoff is the time an attempt to connect may take, TLS included.
_CONNECT_TIMEOUT_MS = 5000


def client_options(message_bytes: int, liveness: Liveness = DEFAULT_LIVENESS) -> Options:
    """Options of a channel whose messages have at most `message_bytes` bytes."""
    return [
        *_common(message_bytes, liveness),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_BACKOFF_MS),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_BACKOFF_MS),
        # Channels to one address do not share connections, so that a new one does not wait for a failed one's backoff.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),  # a step must never be retried automatically
        ("grpc.enable_http_proxy", 0),  # nodes are given by address, and a proxy would see tokens
    ]


def server_options(message_bytes: int, liveness: Liveness = DEFAULT_LIVENESS) -> Options:
    """Options of a server whose messages have at most `message_bytes` bytes."""
    return [
        *_common(message_bytes, liveness),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MS),
        ("grpc.max_concurrent_streams", 1024),
        ("grpc.so_reuseport", 0),  # a second node on the same port is an error
    ]


def _common(message_bytes: int, liveness: Liveness) -> Options:
    """Options of both sides."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.keepalive_time_ms", int(liveness.ping_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(liveness.timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(liveness.timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
