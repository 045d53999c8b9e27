"""The two clients, one that waits and one that is awaited; what they say and understand they share.

A stream is sent in groups of lines that are smaller than what the server takes in ahead of its answers, so that neither
side waits for the other; where a connection breaks, the lines that have no answer yet are sent again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import quote

import httpx

from slipway_client.answers import (
    Answer,
    Line,
    Model,
    OffsetUnit,
    Pair,
    StreamAnswer,
    answer_of,
    models_of,
    stream_answer_of,
)
from slipway_client.errors import Refused, Unreachable
from slipway_client.retries import BROKEN, BUSY, Patience, Retries

Inputs: TypeAlias = str | Pair | Sequence[str | Pair]

# Lines of a stream that are sent together; the server takes in 256 before it wants its answers read.
GROUP = 128


class Client:
    """A client that waits.

    Args:
        url: of the gateway.
        timeout: seconds that one answer may take.
        retries: when to ask again.
        headers: sent with every request.
        transport: httpx's, in the place of the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        timeout: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries = retries or Retries()
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        top_k: int | None = None,
        return_windows: bool = False,
        truncate: bool = False,
        offset_unit: OffsetUnit = "codepoint",
    ) -> Answer:
        """Answers a text, a pair of texts (a tuple), or a list of either.

        Args:
            top_k: labels to list in ``scores``; all when left out.
            return_windows: show what each window of a long text said.
            truncate: read only the beginning of a text that is too long instead of refusing it.
            offset_unit: what ``start`` and ``end`` count.

        Raises:
            Refused: the server said why.
            Unreachable: no answer.
        """
        body = _body(inputs, _options(top_k, return_windows, truncate, offset_unit))
        return answer_of(self._send("POST", f"{_place(model)}/predict", json=body).json())

    def models(self) -> list[Model]:
        """The models that are served.

        Raises:
            Refused, Unreachable: as `predict`.
        """
        return models_of(self._send("GET", "/v1/models").json())

    def stream(
        self,
        model: str,
        lines: Iterable[str | Pair | Line],
        *,
        top_k: int | None = None,
        return_windows: bool = False,
        truncate: bool = False,
        offset_unit: OffsetUnit = "codepoint",
    ) -> Iterator[StreamAnswer]:
        """Answers any number of texts, in their order and in bounded memory.

        A line that cannot be answered has an ``error`` in its answer, and the stream goes on.

        Args:
            lines: texts, pairs, or `Line` objects; read as answers come, never all at once.
            top_k, return_windows, truncate, offset_unit: as in `predict`.

        Raises:
            Refused, Unreachable: as `predict`.
        """
        options, index, coming = _options(top_k, return_windows, truncate, offset_unit), 0, iter(lines)
        while waiting := list(itertools.islice(coming, GROUP)):
            patience = Patience(self._retries)
            while waiting:
                try:
                    with self._http.stream("POST", **_stream(model, waiting, options)) as response:
                        if response.status_code == 200:
                            for line in response.iter_lines():
                                yield _answered(line, index)
                                index += 1
                                del waiting[0]
                                patience.renew()
                            _check_whole(response, waiting)
                            break
                        response.read()
                    pause = _pause(patience, response)
                except httpx.TransportError as error:
                    pause = _pause_after(patience, error)
                time.sleep(pause)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        patience = Patience(self._retries)
        while True:
            try:
                response = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                pause = _pause_after(patience, error)
            else:
                if response.status_code == 200:
                    return response
                pause = _pause(patience, response)
            time.sleep(pause)


class AsyncClient:
    """The same, awaited; its arguments and errors are those of `Client`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        timeout: float = 60.0,
        retries: Retries | None = None,
        headers: dict[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries = retries or Retries()
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, headers=headers, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        top_k: int | None = None,
        return_windows: bool = False,
        truncate: bool = False,
        offset_unit: OffsetUnit = "codepoint",
    ) -> Answer:
        """See `Client.predict`."""
        body = _body(inputs, _options(top_k, return_windows, truncate, offset_unit))
        return answer_of((await self._send("POST", f"{_place(model)}/predict", json=body)).json())

    async def models(self) -> list[Model]:
        """See `Client.models`."""
        return models_of((await self._send("GET", "/v1/models")).json())

    async def stream(
        self,
        model: str,
        lines: Iterable[str | Pair | Line] | AsyncIterable[str | Pair | Line],
        *,
        top_k: int | None = None,
        return_windows: bool = False,
        truncate: bool = False,
        offset_unit: OffsetUnit = "codepoint",
    ) -> AsyncIterator[StreamAnswer]:
        """See `Client.stream`; the lines may come asynchronously too."""
        options, index = _options(top_k, return_windows, truncate, offset_unit), 0
        async for waiting in _groups(lines):
            patience = Patience(self._retries)
            while waiting:
                try:
                    async with self._http.stream("POST", **_stream(model, waiting, options)) as response:
                        if response.status_code == 200:
                            async for line in response.aiter_lines():
                                yield _answered(line, index)
                                index += 1
                                del waiting[0]
                                patience.renew()
                            _check_whole(response, waiting)
                            break
                        await response.aread()
                    pause = _pause(patience, response)
                except httpx.TransportError as error:
                    pause = _pause_after(patience, error)
                await asyncio.sleep(pause)

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        patience = Patience(self._retries)
        while True:
            try:
                response = await self._http.request(method, path, **content)
            except httpx.TransportError as error:
                pause = _pause_after(patience, error)
            else:
                if response.status_code == 200:
                    return response
                pause = _pause(patience, response)
            await asyncio.sleep(pause)


async def _groups(
    lines: Iterable[str | Pair | Line] | AsyncIterable[str | Pair | Line],
) -> AsyncIterator[list[str | Pair | Line]]:
    if not isinstance(lines, AsyncIterable):
        coming = iter(lines)
        while group := list(itertools.islice(coming, GROUP)):
            yield group
        return
    group = []
    async for line in lines:
        group.append(line)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def _place(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"


def _options(
    top_k: int | None, return_windows: bool, truncate: bool, offset_unit: OffsetUnit
) -> dict[str, str | int | bool]:
    """Those that differ from what the server does anyway."""
    said: dict[str, str | int | bool] = {}
    if top_k is not None:
        said["top_k"] = top_k
    if return_windows:
        said["return_windows"] = True
    if truncate:
        said["truncate"] = True
    if offset_unit != "codepoint":
        said["offset_unit"] = offset_unit
    return said


def _body(inputs: Inputs, options: dict[str, str | int | bool]) -> dict[str, Any]:
    if isinstance(inputs, str):
        return {"inputs": inputs, **options}
    items = [inputs] if isinstance(inputs, tuple) else inputs
    return {"inputs": [item if isinstance(item, str) else _paired(item) for item in items], **options}


def _paired(item: Any) -> dict[str, str]:
    text, pair = item
    return {"text": text, "pair": pair}


def _stream(model: str, lines: Sequence[str | Pair | Line], options: dict[str, str | int | bool]) -> dict[str, Any]:
    """The arguments of a request for some lines."""
    return {
        "url": f"{_place(model)}/predict/stream",
        "params": options,
        "content": "".join(f"{json.dumps(_line(line), ensure_ascii=False)}\n" for line in lines).encode(),
    }


def _line(line: str | Pair | Line) -> str | dict[str, Any]:
    if isinstance(line, str):
        return line
    if isinstance(line, Line):
        said = {"text": line.text, "pair": line.pair, "id": line.id}
        return {key: value for key, value in said.items() if value is not None}
    return _paired(line)


def _answered(line: str, index: int) -> StreamAnswer:
    # The server counts the lines of one request; the caller counts them all.
    return stream_answer_of({**json.loads(line), "index": index})


def _check_whole(response: httpx.Response, waiting: Sequence[str | Pair | Line]) -> None:
    """Treats a stream that ends before its last answer as a connection that broke."""
    if waiting:
        raise httpx.RemoteProtocolError("the stream ended early", request=response.request)


def _pause(patience: Patience, response: httpx.Response) -> float:
    """Seconds until the next try after a refusal; raises where there is none."""
    pause = patience.pause(response) if response.status_code in BUSY else None
    if pause is None:
        raise Refused.of(response)
    return pause


def _pause_after(patience: Patience, error: httpx.TransportError) -> float:
    """Seconds until the next try after no answer; raises where there is none."""
    pause = patience.pause() if isinstance(error, BROKEN) else None
    if pause is None:
        url = str(error.request.url)
        raise Unreachable(url, str(error) or type(error).__name__) from error
    return pause
