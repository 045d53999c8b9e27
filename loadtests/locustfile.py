"""The callers, as Locust runs them: `loadtests.run` starts this file in a process of its own.

Locust must be imported before anything that opens a socket, so its imports stand first. Settings come from the plan
file that ``--plan`` names; one row per request goes to ``--rows`` when the run ends.
"""

from __future__ import annotations

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.stats import CSV_STATS_INTERVAL_SEC

# isort: split
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event

from loadtests.answers import Answer, check
from loadtests.arrivals import arrival_times
from loadtests.plan import DRAIN_SECONDS, Plan
from loadtests.sent import Sent, to_csv
from loadtests.texts import Ask, read_mix

PROGRESS_SECONDS = 0.5


class Run:
    """The state of the one run of this process: its clock, its requests still to send, its rows."""

    def __init__(self, environment: Environment, plan: Plan, pairs: bool) -> None:
        self.environment, self.plan = environment, plan
        self.mix = read_mix(
            plan.texts, short_share=plan.short_share, seed=plan.seed, max_chars=plan.max_chars, pairs=pairs
        )
        self.rows: list[Sent] = []
        self.errors: Counter[str] = Counter()
        self.users = itertools.count()
        self.active = plan.users
        self.taken = 0
        self.zero = self.cpu_zero = 0.0
        self.over = gevent.event.Event()
        times = arrival_times(
            plan.rate, plan.span, arrivals=plan.arrivals, seed=plan.seed, limit=plan.max_requests
        ) if plan.rate else []  # fmt: skip
        self.schedule = enumerate(zip(times, self.mix.stream("arrivals"), strict=False))

    def now(self) -> float:
        """Seconds since the first user was ready."""
        if not self.zero:
            self.zero, self.cpu_zero = time.perf_counter(), time.process_time()
            self.reporter = gevent.spawn(self._report)
            gevent.spawn(self._stop)
        return time.perf_counter() - self.zero

    def closed(self, user: int) -> Iterator[tuple[int, float, Ask]]:
        """(number, intended start, request) for one user, each drawn when the last one is done."""
        for number, ask in enumerate(self.mix.stream(user)):
            now = self.now()
            if now >= self.plan.span or self.taken >= self.plan.max_requests:
                return
            self.taken += 1
            yield number, now, ask

    def open(self) -> Iterator[tuple[int, float, Ask]]:
        """The next arrival that no connection has taken yet; waits for its intended start."""
        self.now()
        for number, (moment, ask) in self.schedule:
            gevent.sleep(max(0.0, moment - self.now()))
            yield number, moment, ask

    def keep(
        self,
        user: int,
        number: int,
        ask: Ask,
        status: int,
        answer: Answer,
        *,
        intended: float,
        start: float,
        end: float,
    ) -> Sent:
        """Adds the row of one request; moments are seconds from the start of the run."""
        stages = answer.stages or {}
        row = Sent(
            user=user,
            number=number,
            intended=intended,
            start=start,
            kind=ask.kind,
            place=ask.place,
            chars=ask.chars,
            tokens=answer.tokens,
            windows=answer.windows,
            status=status,
            error=answer.error,
            latency_ms=(end - intended) * 1000,
            tokenize_ms=stages.get("tokenize", 0.0),
            infer_ms=stages.get("infer", 0.0),
            decode_ms=stages.get("decode", 0.0),
            total_ms=stages.get("total", 0.0),
            warmup=intended < self.plan.warmup,
        )
        self.rows.append(row)
        if row.error:
            self.errors[row.error] += 1
        return row

    def left(self) -> None:
        """A user has nothing more to send; the last one ends the run."""
        self.active -= 1
        if not self.active:
            self.over.set()

    def _report(self) -> None:
        while True:
            self._tell()
            gevent.sleep(PROGRESS_SECONDS)

    def _tell(self) -> None:
        """Tells the parent process how far the run is: one JSON object per line on standard output."""
        elapsed = self.now()
        # The generator shares the machine with the server: what it uses is not there to serve with.
        cores = (time.process_time() - self.cpu_zero) / elapsed if elapsed else 0.0
        state = {"elapsed": elapsed, "requests": len(self.rows), "errors": self.errors, "cpu_cores": cores}
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()

    def _stop(self) -> None:
        self.over.wait()
        self.reporter.kill()
        self._tell()
        # Locust writes its CSV files once in a while and not at the end: let it write the last requests too.
        gevent.sleep(1.5 * CSV_STATS_INTERVAL_SEC)
        assert self.environment.runner is not None
        self.environment.runner.quit()


def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--plan", required=True, help="JSON file with the settings of the run")
    parser.add_argument("--rows", required=True, help="CSV file to write, one row per request")
    parser.add_argument("--pairs", action="store_true", help="the model compares two texts")


def _begin(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    plan = Plan.model_validate_json(Path(options.plan).read_text(encoding="utf-8"))
    run = Run(environment, plan, options.pairs)
    Caller.run_state, Caller.network_timeout, Caller.connection_timeout = run, plan.timeout, plan.timeout


def _end(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    Path(options.rows).write_text(to_csv(Caller.run_state.rows), encoding="utf-8")


events.init_command_line_parser.add_listener(_arguments)
events.init.add_listener(_begin)
events.quitting.add_listener(_end)


class Caller(FastHttpUser):  # type: ignore[misc]  # Locust's types are not followed
    """One caller with one connection that stays open."""

    run_state: Run
    concurrency = 1
    # A redirect could lead the load to another machine; it is an error of kind "http 3xx" instead.
    max_redirects = 0

    def on_start(self) -> None:
        self.number = next(self.run_state.users)
        # Locust would count each request by its real start, warm-up included; `send` reports what is to count.
        self.client.request_event = EventHook()

    @task  # type: ignore[untyped-decorator]
    def call(self) -> None:
        run = self.run_state
        for number, intended, ask in run.open() if run.plan.rate else run.closed(self.number):
            self.send(number, intended, ask)
        run.left()
        raise StopUser

    def send(self, number: int, intended: float, ask: Ask) -> None:
        """Sends one request and keeps what came of it."""
        run = self.run_state
        start = run.now() if run.plan.rate else intended
        size, status = 0, 0
        if start > run.plan.span + DRAIN_SECONDS:
            answer, end = Answer("unsent", "no connection became free before the end of the run"), start
        else:
            headers = {"Content-Type": "application/json"}
            with self.client.post(
                run.plan.url,
                data=ask.body,
                headers=headers,
                catch_response=True,
            ) as response:
                status, fault = response.status_code, getattr(response, "error", None)
                content = response.content or b""
                end = run.now()
                # The connection's fate is in the answer; Locust must not raise it a second time.
                response.success()
            size = len(content)
            answer = check(status, content) if status else Answer(_kind_of(fault), str(fault or ""))
        row = run.keep(self.number, number, ask, status, answer, intended=intended, start=start, end=end)
        if not row.warmup:
            if not self.environment.stats.num_requests:
                # Sets the clock of Locust's own rates, which would otherwise include the warm-up.
                self.environment.stats.reset_all()
            self.environment.events.request.fire(
                request_type="POST",
                name=ask.kind,
                response_time=row.latency_ms,
                response_length=size,
                exception=RuntimeError(answer.error) if answer.error else None,
                context={},
            )


def _kind_of(fault: BaseException | None) -> str:
    # The client wraps what it would try again, were it allowed to.
    fault = getattr(fault, "original", None) or fault
    if isinstance(fault, TimeoutError):
        return "timeout"
    if isinstance(fault, ConnectionRefusedError):
        return "connection refused"
    if isinstance(fault, ConnectionResetError) or type(fault).__name__ == "HTTPConnectionClosed":
        return "connection closed"
    return type(fault).__name__ if fault else "no answer"
