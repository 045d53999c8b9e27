"""What is counted and timed, for Prometheus. Measures around the work; the work does not know it."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from serving.classifier import Answers

# Seconds. A short text takes a few ms, a long article up to a second, a full request more.
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2, 5, 10, 30)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Telemetry:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # the gateway's own memory, CPU time and open files
        self.requests = Counter("slipway_requests_total", "Requests answered", ["route", "status"], registry=registry)
        self.errors = Counter("slipway_errors_total", "Requests refused or failed", ["kind"], registry=registry)
        self.latency = Histogram(
            "slipway_request_seconds",
            "From the request's first byte to the answer's last",
            ["route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.stages = Histogram(
            "slipway_stage_seconds",
            "Time in one stage of a prediction",
            ["model", "stage"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.texts = Counter("slipway_texts_total", "Texts answered", ["model"], registry=registry)
        self.windows = Histogram(
            "slipway_text_windows", "Windows of one text", ["model"], buckets=_WINDOWS, registry=registry
        )
        self.rules = Counter(
            "slipway_rules_fired_total", "Answers that a rule changed", ["model", "rule"], registry=registry
        )
        self.in_flight = Gauge("slipway_requests_in_flight", "Requests being answered", registry=registry)
        self.engine_up = Gauge(
            "slipway_engine_up", "Whether the engine can answer for a model", ["engine", "model"], registry=registry
        )

    def answered(self, model: str, answers: Answers) -> None:
        """Records one prediction."""
        for stage, seconds in answers.seconds.items():
            self.stages.labels(model, stage).observe(seconds)
        self.texts.labels(model).inc(len(answers.answers))
        windows = self.windows.labels(model)
        for answer in answers.answers:
            windows.observe(len(answer.encoded.windows))
            for name in {item.rule for item in answer.fired}:
                self.rules.labels(model, name).inc()

    def exposition(self) -> bytes:
        """The metrics as text for a scrape."""
        return generate_latest(self.registry)
