"""Rows of requests → the figures of a run. Pure: rows in, a JSON object out.

Latencies are those of right answers, so that a server cannot look fast by refusing; errors are counted beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtests.answers import STAGES
from loadtests.plan import Plan
from loadtests.sent import Sent

QUANTILES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


def summarise(rows: Sequence[Sent], plan: Plan) -> dict[str, Any]:
    """The figures of a run.

    The measured part begins after the warm-up and ends with ``plan.seconds``, or with the last answer if the run
    was cut short by ``max_requests``. A request belongs to it by its intended start, throughput by its end.

    Args:
        rows: every request of the run, warm-up included.

    Returns:
        ``requests``, ``errors`` (count, share, by kind), ``throughput`` (requests and tokens per second of right
        answers), ``latency`` (``all``, ``short``, ``long``; milliseconds), ``stages`` (shares of the callers' time).
    """
    measured = [row for row in rows if not row.warmup]
    right = [row for row in measured if not row.error]
    end = plan.span
    if len(rows) >= plan.max_requests:
        end = min(end, max(row.end for row in rows))
    window = max(end - plan.warmup, 0.0)
    ended = [row for row in rows if not row.error and plan.warmup <= row.end <= end]
    kinds = Counter(row.error for row in measured if row.error)
    return {
        "requests": len(measured),
        "requests_in_warmup": len(rows) - len(measured),
        "measured_seconds": round(window, 3),
        "errors": {
            "count": len(measured) - len(right),
            "share": round((len(measured) - len(right)) / len(measured), 6) if measured else 0.0,
            "by_kind": dict(sorted(kinds.items())),
        },
        "throughput": {
            "requests_per_second": _per_second(len(ended), window),
            "tokens_per_second": _per_second(sum(row.tokens for row in ended), window),
        },
        "latency": {
            "all": _latency(right),
            "short": _latency([row for row in right if row.kind == "short"]),
            "long": _latency([row for row in right if row.kind == "long"]),
        },
        "stages": _stages(right),
        "waited_for_connection_ms": _waits(measured) if plan.rate else None,
    }


def _per_second(count: int, window: float) -> float | None:
    return round(count / window, 2) if window > 0 else None


def _latency(rows: Sequence[Sent]) -> dict[str, float | int | None]:
    """Quantiles in milliseconds; each is a latency that a request really had (no interpolation)."""
    if not rows:
        return {"n": 0, **dict.fromkeys([*QUANTILES, "max_ms"]), "median_tokens": None, "median_windows": None}
    values = np.array([row.latency_ms for row in rows])
    return {
        "n": len(rows),
        **{name: _quantile(values, q) for name, q in QUANTILES.items()},
        "max_ms": round(float(values.max()), 3),
        "median_tokens": int(np.median([row.tokens for row in rows])),
        "median_windows": int(np.median([row.windows for row in rows])),
    }


def _quantile(values: np.ndarray[Any, Any], q: float) -> float:
    return round(float(np.percentile(values, q, method="inverted_cdf")), 3)


def _stages(rows: Sequence[Sent]) -> dict[str, float]:
    """Shares of the callers' whole waiting time, which sum to 1.

    ``tokenize``, ``infer``, ``decode`` and ``gateway_other`` are inside the gateway's own total; ``outside`` is the
    network, HTTP, the wait for a free connection and the load generator itself.
    """
    whole = sum(row.latency_ms for row in rows)
    if not whole:
        return {}
    parts = {stage: sum(getattr(row, f"{stage}_ms") for row in rows) for stage in STAGES}
    total = sum(row.total_ms for row in rows)
    parts["gateway_other"] = total - sum(parts.values())
    parts["outside"] = whole - total
    return {name: round(value / whole, 4) for name, value in parts.items()}


def _waits(rows: Sequence[Sent]) -> dict[str, float]:
    """How late requests of an open loop were sent, milliseconds; it is part of their latency."""
    if not rows:
        return {}
    late = np.array([(row.start - row.intended) * 1000 for row in rows])
    return {name: _quantile(late, q) for name, q in QUANTILES.items()}
