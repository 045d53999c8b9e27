"""One run: look at the gateway, let Locust load it, read the rows, write the results.

Results are written to a temporary folder and moved into place when the run is complete: a folder of results is of one
run, or it is the one of the run before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.answers import check
from loadtests.errors import AnswerWrong, GatewayUnreachable, LocustFailed, ModelMissing, TextsUnusable
from loadtests.plan import DRAIN_SECONDS, Plan
from loadtests.sent import from_csv
from loadtests.summary import summarise
from loadtests.texts import Mix, read_mix

SCHEMA = "slipway.loadtest/1"
ROWS, SUMMARY, REPORT, LOG, PREFIX = "requests.csv", "summary.json", "report.html", "locust.log", "locust"

# Called about twice a second with what the Locust process reports: elapsed seconds, requests, errors
# by kind, and the cores that it uses itself.
Progress = Callable[[dict[str, Any]], None]


def find_model(host: str, name: str | None, timeout: float = 10.0) -> dict[str, Any]:
    """What ``GET /v1/models`` says about a model; the first one when none is named.

    Raises:
        GatewayUnreachable: nothing answers there, it is not ready, or it is something else.
        ModelMissing: the gateway does not serve that model.
    """
    import httpx

    try:
        # A proxy from the environment would stand between the load and this machine.
        with httpx.Client(base_url=host, timeout=timeout, trust_env=False) as client:
            ready = client.get("/health/ready")
            if ready.status_code != 200:
                raise GatewayUnreachable(host, f"/health/ready answers {ready.status_code}, so it is not ready")
            models = client.get("/v1/models").raise_for_status().json()["models"]
            served: dict[str, dict[str, Any]] = {str(model["name"]): model for model in models}
    except httpx.HTTPStatusError as error:
        raise GatewayUnreachable(host, f"/v1/models answers {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise GatewayUnreachable(host, str(error) or type(error).__name__) from error
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayUnreachable(host, "/v1/models is not an answer of this gateway") from error
    if not served or (name is not None and name not in served):
        raise ModelMissing(host, name or "any model", list(served))
    return served[name] if name is not None else next(iter(served.values()))


def default_texts(model: str) -> Path:
    """The test split of the served bundle, where ``make finetune`` left it.

    Raises:
        TextsUnusable: it is not there.
    """
    bundle = Path("artifacts") / model / "bundle"
    file = bundle / "splits" / "test.jsonl"
    # Only a path is read from the manifest; without it the usual name is tried, and its absence told.
    with suppress(OSError, ValueError, KeyError, TypeError):
        file = bundle / str(json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["splits"]["test"]["file"])
    if not file.is_file():
        raise TextsUnusable(file, "no such file, and no --texts was given")
    return file


def try_out(plan: Plan, mix: Mix) -> None:
    """Sends the shortest and the longest request once, so that a wrong set-up ends here and not as 100% errors.

    Raises:
        AnswerWrong: with the kind of error and what the gateway says.
        GatewayUnreachable: no answer at all.
    """
    import httpx

    longest = max(mix.long, key=lambda ask: ask.chars)
    with httpx.Client(base_url=plan.host, timeout=plan.timeout, trust_env=False) as client:
        for ask in (min(mix.short, key=lambda ask: ask.chars), longest):
            try:
                response = client.post(plan.url, content=ask.body, headers={"Content-Type": "application/json"})
            except httpx.HTTPError as error:
                raise GatewayUnreachable(plan.host, str(error) or type(error).__name__) from error
            answer = check(response.status_code, response.content)
            if answer.error:
                hint = "; pass a smaller --max-chars to leave such texts out" if ask is longest else ""
                what = f"{plan.texts}: the {'longest' if ask is longest else 'shortest'} text ({ask.chars} characters)"
                raise AnswerWrong(what, answer.error, answer.detail + hint)


def run(plan: Plan, model: dict[str, Any], out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Runs Locust as the plan says and writes the results into ``out``.

    Args:
        model: what the gateway says about the model; kept in the summary.
        out: folder for requests.csv, summary.json, report.html, locust.log and Locust's own CSV files.

    Returns:
        the summary, as written.

    Raises:
        LocustFailed: Locust ended with an error; nothing was written.
    """
    pairs = model.get("task") == "text-pair"
    mix = read_mix(plan.texts, short_share=plan.short_share, seed=plan.seed, max_chars=plan.max_chars, pairs=pairs)
    try_out(plan, mix)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Absolute, because Locust runs inside it.
    folder = Path(tempfile.mkdtemp(dir=out.parent.resolve(), prefix=f".{out.name}."))
    try:
        head = machine.beginning(SCHEMA, "make loadtest", "locust", "gevent", "geventhttpclient")
        state = _locust(plan, folder, pairs, progress)
        rows = from_csv(folder / ROWS)
        summary = {
            **head,
            "model": model,
            "mode": "open" if plan.rate else "closed",
            "plan": plan.model_dump(mode="json") | {"texts": plan.texts.name},
            "texts": {"short": len(mix.short), "long": len(mix.long), "left_out": mix.left_out},
            **summarise(rows, plan),
            "generator_cpu_cores": round(float(state.get("cpu_cores", 0.0)), 2),
        }
        write_json(folder / SUMMARY, summary)
        out.mkdir(parents=True, exist_ok=True)
        # The summary last: where it is new, the rest is too.
        for file in sorted(folder.iterdir(), key=lambda item: item.name == SUMMARY):
            file.chmod(0o644)
            file.replace(out / file.name)
        return summary
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(file: Path, value: object) -> None:
    """Writes JSON by rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _locust(plan: Plan, folder: Path, pairs: bool, progress: Progress | None) -> dict[str, Any]:
    """Runs Locust; returns the last state that it reported."""
    root = Path(__file__).resolve().parent.parent
    settings = folder / "plan.json"
    settings.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    # The users end the run themselves; this bound holds if they cannot.
    bound = plan.span + DRAIN_SECONDS + plan.timeout + 10
    command = [sys.executable, "-m", "locust", "-f", str(root / "loadtests" / "locustfile.py"), "--headless",
               "--host", plan.host, "--users", str(plan.users), "--spawn-rate", str(plan.users),
               "--run-time", f"{int(bound) + 1}s", "--stop-timeout", "1", "--exit-code-on-error", "0",
               "--csv", str(folder / PREFIX), "--html", str(folder / REPORT), "--logfile", str(folder / LOG),
               "--only-summary", "--plan", str(settings), "--rows", str(folder / ROWS)]  # fmt: skip
    if pairs:
        command.append("--pairs")
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    # LOCUST_* variables would change the run behind the plan's back.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LOCUST_")}
    environment = kept | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        command,
        # Locust reads keys from a terminal ("w" adds a user), which would change the run behind the plan's back too.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
    )
    tail: list[str] = []
    last: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                state = json.loads(line)
            except ValueError:
                state = None
            if isinstance(state, dict) and "elapsed" in state:
                last = state
                if progress:
                    progress(state)
            else:
                tail = [*tail, line][-20:]
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        if process.stdout:
            process.stdout.close()
    if code or not (folder / ROWS).is_file():
        log = folder / LOG
        written = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:] if log.is_file() else []
        lines = [line.rstrip() for line in (*written, *tail)]
        raise LocustFailed(code, "\n".join(filter(None, lines)))
    settings.unlink()
    return last
