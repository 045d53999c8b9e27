"""Bulk work: many lines through the NDJSON route, or one text as long as a novel, and what memory the gateway takes.

The caller reads while it sends, on one connection, as the route asks for. The gateway's memory is read from its own
``/metrics`` while the work is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.errors import GatewayUnreachable
from loadtests.machine import commit, hardware, versions
from loadtests.texts import Ask, read_mix

POLL_SECONDS = 0.25
_MEMORY = "process_resident_memory_bytes "
# Called with (lines answered, lines in all).
Progress = Callable[[int, int], None]


def make_lines(texts: Path, *, count: int, characters: int, seed: int, short_share: float) -> list[str]:
    """Texts for a run: ``count`` drawn from a file, or its texts joined into one of ``characters`` code points."""
    mix = read_mix(texts, short_share=short_share, seed=seed, max_chars=1 << 30)
    if not characters:
        asks = mix.stream("bulk")
        return [next(asks).text for _ in range(count)]
    order = list(mix.long)
    random.Random(seed).shuffle(order)
    return [_joined(order, characters)]


def _joined(asks: Sequence[Ask], characters: int) -> str:
    parts: list[str] = []
    length = place = 0
    while length < characters:
        parts.append(asks[place % len(asks)].text + "\n")
        length += len(parts[-1])
        place += 1
    return "".join(parts)[:characters]


def bulk(host: str, model: str, lines: Sequence[str], *, timeout: float, progress: Progress) -> dict[str, Any]:
    """Sends all lines and reads all answers.

    Returns:
        the figures: seconds, lines and windows and characters per second, time to the first answer, errors by kind,
        the gateway's resident memory in MiB before, at its highest and after.

    Raises:
        GatewayUnreachable: it cannot be reached or refuses the stream as a whole.
    """
    try:
        return asyncio.run(_bulk(host, model, lines, timeout, progress))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise GatewayUnreachable(host, str(error) or type(error).__name__) from error


async def _bulk(host: str, model: str, lines: Sequence[str], timeout: float, progress: Progress) -> dict[str, Any]:
    async def body() -> AsyncIterator[bytes]:
        for line in lines:
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n"

    answered = windows = covered = 0
    errors: dict[str, int] = {}
    first = 0.0
    limits = aiohttp.ClientTimeout(total=timeout)
    # aiohttp refuses a line of twice this size; a tagger's answer to a novel has a megabyte or two.
    async with aiohttp.ClientSession(timeout=limits, read_bufsize=1 << 22) as session:
        before = await _memory(session, host)
        seen = [before]
        watcher = asyncio.create_task(_watch(session, host, seen))
        begun = time.perf_counter()
        url = f"{host}/v1/models/{model}/predict/stream?top_k=1"
        async with session.post(url, data=body()) as response:
            if response.status != 200:
                raise GatewayUnreachable(host, f"{response.status}: {(await response.text())[:500]}")
            async for raw in response.content:
                answered += 1
                first = first or time.perf_counter() - begun
                answer = json.loads(raw)
                if "error" in answer:
                    kind = str(answer["error"]["type"]).rpartition(":")[2]
                    errors[kind] = errors.get(kind, 0) + 1
                else:
                    windows += answer["prediction"]["windows"]
                    covered += answer["prediction"]["covered"] == 1.0
                progress(answered, len(lines))
        seconds = time.perf_counter() - begun
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        after = await _memory(session, host)
    characters = sum(map(len, lines))
    return {
        "lines": len(lines),
        "answered": answered,
        "covered_whole": covered,
        "characters": characters,
        "windows": windows,
        "errors": errors,
        "seconds": round(seconds, 2),
        "seconds_to_first_answer": round(first, 3),
        "lines_per_second": round(answered / seconds, 1),
        "windows_per_second": round(windows / seconds, 1),
        "characters_per_second": round(characters / seconds),
        "gateway_mib": {"before": before, "highest": max([*seen, after]), "after": after},
    }


async def _watch(session: aiohttp.ClientSession, host: str, seen: list[float]) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS)
        seen.append(await _memory(session, host))


async def _memory(session: aiohttp.ClientSession, host: str) -> float:
    """The gateway's resident memory in MiB."""
    async with session.get(f"{host}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith(_MEMORY):
                return round(float(line.removeprefix(_MEMORY)) / 2**20, 1)
    raise GatewayUnreachable(host, "its /metrics tell no process_resident_memory_bytes")


def record(figures: dict[str, Any], plan: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The figures with what they need to be compared: machine, versions, commit, plan, model."""
    return {
        **figures,
        "plan": plan,
        "model": model,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions("aiohttp"),
    }
