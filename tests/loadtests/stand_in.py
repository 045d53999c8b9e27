"""A tiny HTTP server with the shape of the gateway's native route, started by the tests in a process of its own.

``loadtests`` speaks HTTP only, so this is all that it can see of a gateway. What goes wrong is chosen by the texts:
a text that holds a word such as BUSY gets that fault. ``--stall N SECONDS`` lets the N-th request, and all that come
in the meantime, wait for so many seconds. ``--places N`` answers so many requests at a time, each for 20 ms, and
refuses the others, with ``--mute`` without saying when to come back.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

app = FastAPI()
state = {"count": 0.0, "stall_at": 0.0, "stall_seconds": 0.0, "stall_end": 0.0, "inside": 0.0}
options = argparse.Namespace(not_ready=False, task="single-label", places=0, mute=False)


@app.get("/health/ready")
def ready() -> Response:
    return Response(status_code=503 if options.not_ready else 200)


@app.get("/v1/models")
def models() -> dict[str, object]:
    return {"models": [{"name": name, "task": options.task, "format": "onnx_int8"} for name in ("news", "reviews")]}


@app.post("/v1/models/{model}/predict")
async def predict(model: str, request: Request) -> Response:
    state["count"] += 1
    if state["count"] == state["stall_at"]:
        state["stall_end"] = time.monotonic() + state["stall_seconds"]
    await asyncio.sleep(max(0.0, state["stall_end"] - time.monotonic()))
    if options.places:
        if state["inside"] >= options.places:
            return JSONResponse({"title": "full"}, 429, {} if options.mute else {"Retry-After": "1"})
        state["inside"] += 1
        await asyncio.sleep(0.02)
        state["inside"] -= 1
    inputs = (await request.json())["inputs"]
    text = inputs if isinstance(inputs, str) else inputs[0]["text"] + inputs[0]["pair"]
    if "BUSY" in text:
        return JSONResponse({"title": "full", "detail": "all places are taken"}, 429, {"Retry-After": "1"})
    if "TOOLONG" in text:
        return JSONResponse({"title": "too long", "detail": "9 windows; the limit is 8"}, 413)
    if "GARBAGE" in text:
        return PlainTextResponse("hello")
    answer = {
        "model": model,
        "predictions": [
            {
                "label": "a",
                "score": 0.9,
                "tokens": len(text),
                "windows": 1 + len(text) // 100,
                "truncated": "TRUNCATED" in text,
            }
        ],
        "timing_ms": {"tokenize": 0.1, "infer": 0.3, "decode": 0.05, "total": 0.5},
    }
    if "NOTIMING" in text:
        del answer["timing_ms"]
    return JSONResponse(answer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stall", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--not-ready", action="store_true")
    parser.add_argument("--places", type=int, default=0)
    parser.add_argument("--mute", action="store_true")
    parser.add_argument("--task", default="single-label")
    options = parser.parse_args()
    state.update(stall_at=options.stall[0], stall_seconds=options.stall[1])
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")
