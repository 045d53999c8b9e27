"""What is counted and timed, for Prometheus: every metric of the gateway is defined here and nowhere else.

Measures around the work; the work does not know it. Labels have few values that the operator chose: routes, models,
model labels, kinds of errors; never what a caller wrote. No text leaves through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.catalogue import ServedModel
from serving.classifier import Answer, Answers

# Seconds: dense from 1 ms (a short text) to 1 s (a long article), and a few beyond for what waits or is very long.
SECONDS: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1)
SECONDS += (0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
DIFFERENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1)
# The label of an answer that names none: a multi-label text below every threshold, a text without entities.
NOTHING = "(none)"

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Outside(Collector):
    """What the engine counted, as it was last told: counters that are kept elsewhere."""

    def __init__(self) -> None:
        self.told: Mapping[str, Mapping[str, float]] = {}
        self.troubles = (0, 0)

    def collect(self) -> Iterator[Metric]:
        restarts, repeated = self.troubles
        yield CounterMetricFamily(
            "slipway_engine_restarts", "Starts of the supervised engine after the first", restarts
        )
        yield CounterMetricFamily(
            "slipway_engine_calls_repeated", "Engine calls that were asked a second time", repeated
        )
        counted = {
            "calls": "Calls that Triton answered",
            "computations": "Computations of Triton, each of the windows of one call or several",
            "windows": "Windows that Triton computed",
        }
        for name, sentence in counted.items():
            family = CounterMetricFamily(f"slipway_triton_{name}", sentence, labels=["model"])
            for model, values in self.told.items():
                if name in values:
                    family.add_metric([model], values[name])
            yield family
        seconds = CounterMetricFamily(
            "slipway_triton_seconds", "Seconds in a part of Triton's work, summed over calls", labels=["model", "part"]
        )
        for model, values in self.told.items():
            for part in ("queue", "input", "compute", "output"):
                if part in values:
                    seconds.add_metric([model, part], values[part])
        yield seconds


@dataclass(frozen=True, slots=True)
class _OfModel:
    """What every answer of one version of a model is counted in."""

    texts: Counter
    version_texts: Counter
    windows: Histogram
    request_windows: Histogram
    confidence: Summary


class Telemetry:
    """The gateway's metrics, in a registry of their own.

    Attributes:
        stages: ``stage`` is one of ``tokenize``, ``queue`` (an engine call waits for its turn), ``infer`` (all engine
            calls of a request, their waiting included), ``decode``, ``total``.
        queue_tokens: tokens that were admitted and are not answered yet, as admission counts them.
        refusals: what admission did not let in, by ``reason``: ``full``, ``late`` (it could not have been answered in
            its time) or ``rate`` (of its key); each is also an error of its kind.
        shadow_texts: by ``result``: ``same`` labels and entities, ``different``, ``dropped`` (real work came first),
            ``failed``.
        cache: lookups by ``result``: ``hit`` or ``miss``.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # the gateway's own memory, CPU time and open files

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"slipway_{name}", told, labels, registry=registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"slipway_{name}", told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"slipway_{name}", told, labels, buckets=buckets, registry=registry)

        # Requests
        self.requests = counter("requests_total", "Requests answered", "route", "status")
        self.errors = counter("errors_total", "Requests refused or failed", "kind")
        self.latency = histogram(
            "request_seconds", "From the request's first byte to the answer's last", SECONDS, "route"
        )
        self.in_flight = gauge("requests_in_flight", "Requests being answered")
        self.loop_lag = histogram("event_loop_lag_seconds", "How late the event loop runs what is due", SECONDS)

        # Predictions
        self.stages = histogram("stage_seconds", "Time in one stage of a prediction", SECONDS, "model", "stage")
        self.texts = counter("texts_total", "Texts answered", "model")
        self.windows = histogram("text_windows", "Windows of one text", WINDOWS, "model")
        self.request_windows = histogram("request_windows", "Windows of one request", WINDOWS, "model")
        self.rules = counter("rules_fired_total", "Answers that a rule changed", "model", "rule")

        # What is answered: a shift of these is the first sign that the texts are no longer those of the training.
        self.predictions = counter("predictions_total", "Labels and entities given", "model", "label")
        self.confidence = Summary(
            "slipway_confidence", "Score of an answer's best label or entity", ["model"], registry=registry
        )

        # Versions of a model
        self.versions = counter("version_texts_total", "Texts answered, by the version that did", "model", "version")
        self.shadow_texts = counter(
            "shadow_texts_total", "Texts that a shadow was to answer too", "model", "version", "result"
        )
        self.shadow_difference = histogram(
            "shadow_score_difference", "Largest difference of a text's scores from its shadow's", DIFFERENCES, "model"
        )

        # Admission and cache
        self.queue_tokens = gauge("queue_tokens", "Tokens admitted and not yet answered", "model")
        self.drain_rate = gauge(
            "drain_tokens_per_second", "Tokens that the engine did a second while more waited", "model"
        )
        self.refusals = counter("refusals_total", "Requests that admission did not let in", "model", "reason")
        self.cache = counter("cache_total", "Lookups in the cache of answers", "model", "result")
        self.cache_entries = gauge("cache_entries", "Answers that the cache holds")
        self.cache_bytes = gauge("cache_bytes", "Bytes that the cached answers are reckoned at")

        # Engine
        self.engine_up = gauge("engine_up", "Whether the engine can answer for a model", "engine", "model")
        self.batch_windows = histogram("batch_windows", "Windows in one computation", WINDOWS, "model")
        self.outside = _Outside()
        registry.register(self.outside)
        self.model_info = gauge("model_info", "What is served, always 1", "model", "version", "format", "engine")

        # Found again without the library's lock and its look at every label; there are as many as in an exposition.
        self._stage, self._batch = cache(self.stages.labels), cache(self.batch_windows.labels)
        self._of_model, self._label = cache(self._model), cache(self.predictions.labels)
        self._route, self._status = cache(self.latency.labels), cache(self.requests.labels)
        self._refusal, self._error = cache(self.refusals.labels), cache(self.errors.labels)

    def _model(self, model: str, version: int) -> _OfModel:
        return _OfModel(
            self.texts.labels(model),
            self.versions.labels(model, str(version)),
            self.windows.labels(model),
            self.request_windows.labels(model),
            self.confidence.labels(model),
        )

    def ended(self, route: str, status: int | str, seconds: float) -> None:
        """Records one request."""
        self.in_flight.dec()
        self._status(route, status).inc()
        self._route(route).observe(seconds)

    def turned_away(self, model: str, reason: str) -> None:
        """Records one request that was refused before it was begun: as it is counted elsewhere, at once."""
        self._refusal(model, reason).inc()
        self._error("overloaded").inc()
        self._status("none", 429).inc()
        self._route("none").observe(0.0)

    def answered(self, served: ServedModel, answers: Answers) -> None:
        """Records one prediction."""
        model, names = served.name, served.manifest.task.labels
        own = self._of_model(model, served.version)
        for stage, seconds in answers.seconds.items():
            self._stage(model, stage).observe(seconds)
        own.texts.inc(len(answers.answers))
        own.version_texts.inc(len(answers.answers))
        together = 0
        for answer in answers.answers:
            count = len(answer.encoded.windows)
            together += count
            own.windows.observe(count)
            for name in {item.rule for item in answer.fired}:
                self.rules.labels(model, name).inc()
            given = [names[index] for index in answer.chosen] + [item.label for item in answer.tagged]
            for label in given or (NOTHING,):
                self._label(model, label).inc()
            if (score := best_score(answer)) is not None:
                own.confidence.observe(score)
        own.request_windows.observe(together)

    def computed(self, model: str, windows: int) -> None:
        """Records one computation of the engine."""
        self._batch(model).observe(windows)

    def waited(self, model: str, seconds: float) -> None:
        """Records that an engine call waited for its turn."""
        self._stage(model, "queue").observe(seconds)

    def exposition(self) -> bytes:
        """The metrics as text for a scrape."""
        return generate_latest(self.registry)


def best_score(answer: Answer) -> float | None:
    """The score of the best label, or of a tagger's best entity; None where nothing was found to have a score."""
    if answer.classified is not None:
        return float(answer.classified.scores.max())
    return max((item.score for item in answer.tagged), default=None)
