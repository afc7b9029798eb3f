"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKENS = tuple(1 << power for power in range(4, 18))


class Metrics:
    """Counters and histograms of one server.

    Attributes:
        requests: Requests by task and status.
        latency: Seconds of answered requests, by task and by the power of two at or above their tokens.
        stages: Seconds of answered requests in the queue, the decoder and the network.
        batches: Requests of each pass of the network.
        batch_tokens: Tokens of each pass.
        in_flight: Requests that wait or run.
        waiting_tokens: Tokens that wait for the network.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        one: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("fluxvit_requests", "Requests.", ("task", "status"), **one)
        self.latency = Histogram(
            "fluxvit_request_seconds",
            "Seconds from the arrival of a request to its answer.",
            ("task", "tokens"),
            buckets=_SECONDS,
            **one,
        )
        self.stages = Histogram(
            "fluxvit_stage_seconds", "Seconds of a request.", ("stage",), buckets=_SECONDS, **one
        )
        self.batches = Histogram(
            "fluxvit_batch_requests", "Requests of a pass.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **one
        )
        self.batch_tokens = Histogram("fluxvit_batch_tokens", "Tokens of a pass.", buckets=_TOKENS, **one)
        self.network = Histogram("fluxvit_batch_seconds", "Seconds of a pass.", buckets=_SECONDS, **one)
        self.in_flight = Gauge("fluxvit_in_flight", "Requests that wait or run.", **one)
        self.waiting_tokens = Gauge("fluxvit_waiting_tokens", "Tokens that wait for the network.", **one)

    def batch(self, requests: int, tokens: int, seconds: float) -> None:
        """Count a pass of the network."""
        self.batches.observe(requests)
        self.batch_tokens.observe(tokens)
        self.network.observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
