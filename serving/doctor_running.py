"""The part of the doctor that looks over a gateway which runs, from outside, over HTTP."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from serving.doctor import Finding

# Seconds: that an answer may take; that the two clocks may differ; that the event loop may be late on average.
_PATIENCE, _CLOCKS, _LATE = 15.0, 5.0, 0.05
# Shares: of open files, and of requests that the server answered with 5xx.
_FILES, _FAILED = 0.8, 0.01


def look_over_running(url: str) -> Iterator[Finding]:
    """Looks at a gateway at ``url``, one finding each."""
    url = url.rstrip("/")
    try:
        status, headers, _ = _get(f"{url}/health/live")
    except (URLError, OSError, ValueError) as error:
        mend = "start it with `make serve`, or see that this machine may reach it"
        yield Finding("bad", "gateway", f"{url} does not answer: {getattr(error, 'reason', error)}", mend)
        return
    if status != 200:
        yield Finding("bad", "gateway", f"{url}/health/live says {status}", "is that a Slipway gateway?")
        return
    yield Finding("good", "gateway", f"{url} answers")
    if told := email.utils.parsedate_to_datetime(headers.get("date", "")) if headers.get("date") else None:
        apart = abs(told.timestamp() - time.time())
        if apart > _CLOCKS:
            said = f"its clock and this one are {apart:.0f} s apart"
            yield Finding("bad", "clock", said, "have both set by NTP: logs and traces do not fit together")
        else:
            yield Finding("good", "clock", "its clock and this one agree")
    _, _, body = _get(f"{url}/health/ready")
    for model, state in json.loads(body).get("models", {}).items():
        ready = state == "ready"
        mend = "" if ready else "look into the log of the engine (SLIPWAY_LOG_FOLDER/triton.log)"
        yield Finding("good" if ready else "bad", f"model {model}", state, mend)
    yield from _models(url)
    yield from _counted(url)


def _models(url: str) -> Iterator[Finding]:
    _, _, body = _get(f"{url}/v1/models")
    for model in json.loads(body)["models"]:
        name = model["name"]
        detail: dict[str, Any] = json.loads(_get(f"{url}/v1/models/{name}")[2])
        if live := detail.get("live"):
            wrong = live["max_abs"] > live["tolerance"]
            said = f"golden rows differed by {live['max_abs']:.1e} at the start, {live['tolerance']:.1e} are allowed"
            mend = "`make export` on this kind of machine" if wrong else ""
            yield Finding("bad" if wrong else "good", f"golden rows of {name}", said, mend)
        text = {"text": "好", "pair": "好"} if model["task"] == "text-pair" else "好"
        begun = time.perf_counter()
        status, _, answer = _get(f"{url}/v1/models/{name}/predict", {"inputs": [text]})
        took = f"{(time.perf_counter() - begun) * 1000:.0f} ms"
        if status == 200:
            yield Finding("good", f"answers of {name}", f"one text took {took}")
        elif status == 401:
            yield Finding("good", f"answers of {name}", "it asks for a key, as it should where it has keys")
        else:
            detail_of = json.loads(answer).get("detail", "")
            mend = "try again; if it stays, see the gateway's log"
            yield Finding("bad", f"answers of {name}", f"{status} after {took}: {detail_of}", mend)
        if status == 200 and urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
            mend = "set SLIPWAY_KEYS_FILE, or see that only those reach it who may"
            yield Finding("note", "keys", f"{url} answered without a key", mend)


def _counted(url: str) -> Iterator[Finding]:
    _, _, body = _get(f"{url}/metrics")
    lines = [line.rpartition(" ") for line in body.splitlines() if line and not line.startswith("#")]
    values = {name: float(value) for name, _, value in lines}
    opened, most = values.get("process_open_fds", 0.0), values.get("process_max_fds", 0.0)
    if most:
        many = opened > _FILES * most
        said = f"{opened:.0f} of {most:.0f} are open"
        mend = "raise `ulimit -n`, or lower SLIPWAY_MAX_CONNECTIONS" if many else ""
        yield Finding("bad" if many else "good", "open files", said, mend)
    asked = {name: value for name, value in values.items() if name.startswith("slipway_requests_total{")}
    failed = sum(value for name, value in asked.items() if 'status="5' in name)
    if failed > _FAILED * max(1.0, sum(asked.values())):
        said = f"{failed:.0f} of {sum(asked.values()):.0f} requests were answered with 5xx since the start"
        yield Finding("note", "errors", said, "slipway_errors_total tells their kinds, the log their reasons")
    count = values.get("slipway_event_loop_lag_seconds_count", 0.0)
    late = values.get("slipway_event_loop_lag_seconds_sum", 0.0) / count if count else 0.0
    if late > _LATE:
        mend = "it has too few cores for its load; see the stage report"
        yield Finding("note", "event loop", f"it is late by {late * 1000:.0f} ms on average", mend)


def _get(url: str, body: object = None) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, and text; an error status is no exception here."""
    data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("not an http or https address")
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=_PATIENCE) as answer:
            status, headers, read = answer.status, answer.headers, answer.read()
    except HTTPError as error:
        with error:
            status, headers, read = error.code, error.headers, error.read()
    return status, {name.lower(): value for name, value in headers.items()}, read.decode("utf-8", "replace")
