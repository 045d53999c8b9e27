"""What is written in an afternoon: FastAPI around one ONNX Runtime session, for comparison. Same texts, same windows.

    python -m serving.stages.plain BUNDLES MODEL PORT_FILE

A synchronous route, so that the framework's thread pool runs it; every request computes its own windows at once.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from bundle.predict import predict
from serving.catalogue import ServedModel
from serving.engines import feeds, outputs_of
from serving.stages.bare import served


class Asked(BaseModel):
    """The part of the native request that is needed here."""

    inputs: str
    truncate: bool = True


class Said(BaseModel):
    label: str
    score: float


def make_app(model: ServedModel) -> FastAPI:
    """The application; its one session has all the threads that the gateway's sessions share."""
    how, app = model.running, FastAPI()
    options = ort.SessionOptions()
    options.intra_op_num_threads = how.threads * how.sessions
    session = ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"])
    outputs, task, joining = outputs_of(model), model.manifest.task, model.manifest.text.joining
    tokens = how.batch_tokens if model.artifact.batch_invariant else 1

    @app.post("/predict")
    def answer(asked: Asked) -> Said:
        encoded = model.encoder.encode(asked.inputs, truncate=asked.truncate)
        (found,) = predict(
            [encoded],
            model.encoder,
            lambda ids, types: tuple(session.run(outputs, feeds(model, ids, types))),
            batch_tokens=min(tokens, 4096),
        )
        said = found.classified(task, joining)
        return Said(label=task.labels[said.label], score=float(said.scores[said.label]))

    return app


def main(bundles: Path, name: str, port_file: Path) -> None:
    """Serves on a free loopback port, whose number is written to a file."""
    model = served(bundles, name)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port_file.write_text(str(listener.getsockname()[1]), encoding="utf-8")
        uvicorn.Server(uvicorn.Config(make_app(model), log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
