"""One Triton over gRPC: the only file that imports tritonclient.

Maps what gRPC says to the project's errors and bounds every wait. Whether a call is asked again, and of whom, is the
engine's part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineTimeout, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import STATISTICS, feeds, outputs_of
from serving.tracing import outgoing

# Seconds that a question about readiness may take.
READY_SECONDS = 2.0
# gRPC: look for a server that went away often, since a supervised one comes back within seconds.
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", triton_aio.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", triton_aio.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Neither a proxy's settings nor another gateway's channel in this process are meant here.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_TYPES = {"int64": "INT64", "int32": "INT32"}


class Gone(EngineUnavailable):
    """The connection is refused or broke."""


class Failed(EngineUnavailable):
    """The server is there, and could not compute the call: its stub died, or the model raised an error."""


class Missing(EngineUnavailable):
    """The server is there, and has not loaded the model: it is stopping, say, or somebody unloaded it."""


class TritonClient:
    """A connection to one Triton.

    Args:
        url: host:port of its gRPC endpoint.
        timeout_seconds: bound of one call.
        away: what the server is known to be doing while it is not ready, as a sentence; empty where nothing is known.
    """

    def __init__(self, url: str, timeout_seconds: float, away: Callable[[], str] = str) -> None:
        self.url, self._timeout, self._away = url, timeout_seconds, away
        self._client = triton_aio.InferenceServerClient(url, channel_args=_CHANNEL)

    async def close(self) -> None:
        """Ends the connection; calls under way raise `Gone`."""
        await self._client.close()

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        """As `Engine.infer`.

        Raises:
            Gone, Missing, Failed: it may be asked again.
            EngineUnavailable, EngineTimeout: asking again would not help.
        """
        inputs = []
        for tensor, (name, values) in zip(
            model.manifest.signature.inputs, feeds(model, input_ids, token_type_ids).items(), strict=True
        ):
            item = triton.InferInput(name, list(values.shape), _TYPES[tensor.dtype])
            item.set_data_from_numpy(values.astype(tensor.dtype, copy=False))
            inputs.append(item)
        outputs = outputs_of(model)
        with outgoing("triton ModelInfer") as headers, self._told():
            result = await self._client.infer(
                model.triton_name,
                inputs,
                model_version=str(model.version),
                outputs=[triton.InferRequestedOutput(name) for name in outputs],
                headers=headers,
                client_timeout=self._timeout,
            )
        return tuple(np.asarray(result.as_numpy(name), dtype=np.float32) for name in outputs)

    async def lacking(self, models: Sequence[ServedModel]) -> dict[str, str]:
        """The models that the server cannot answer for, by id, and why.

        Raises:
            EngineError: it does not answer.
        """
        answers = await asyncio.gather(*map(self._is_ready, models), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return {
            model.id: f"Triton has not loaded version {model.version}"
            for model, answer in zip(models, answers, strict=True)
            if not answer
        }

    async def _is_ready(self, model: ServedModel) -> Any:
        with self._told():
            name, version = model.triton_name, str(model.version)
            return await self._client.is_model_ready(name, version, client_timeout=READY_SECONDS)

    async def load(self, model: ServedModel, seconds: float) -> None:
        """Has the server load a model, which may take so many seconds.

        Raises:
            BundleError: it cannot, or takes no models while it runs.
            EngineError: it does not answer.
        """
        try:
            await self._client.load_model(model.triton_name, client_timeout=seconds)
        except InferenceServerException as error:
            message = str(error.message() or "")
            if "not allowed" in message:
                raise BundleError(
                    "this Triton takes no models while it runs; start it with --model-control-mode=explicit "
                    f"--load-model=*, or restart it with {model.triton_name} in its repository"
                ) from error
            if str(error.status() or "").endswith(("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")):
                raise self._translated(error) from error
            # What follows the first line is where in a script it happened.
            raise BundleError(f"Triton cannot load {model.triton_name}: {message.partition(chr(10))[0]}") from error

    async def unload(self, model: ServedModel, seconds: float) -> None:
        """Has the server let go of a model, which may take so many seconds.

        Raises:
            EngineError: it does not answer.
        """
        with self._told():
            await self._client.unload_model(model.triton_name, client_timeout=seconds)

    async def statistics(self, model: ServedModel) -> dict[str, float]:
        """As `Engine.statistics`, of one model.

        Raises:
            EngineError: it does not answer.
        """
        with self._told():
            name, version = model.triton_name, str(model.version)
            found = await self._client.get_inference_statistics(name, version, client_timeout=READY_SECONDS)
        (told,) = found.model_stats
        sums = told.inference_stats
        parts = (sums.queue, sums.compute_input, sums.compute_infer, sums.compute_output)
        counts = (sums.success.count, told.execution_count, told.inference_count)
        seconds = [part.ns / 1e9 for part in parts]
        return dict(zip(STATISTICS, (*counts, *seconds), strict=True))

    async def check(self, model: ServedModel) -> tuple[int, int]:
        """Compares what the server has loaded with the manifest.

        Returns:
            the most windows of one call, and how many computations it does at the same time.

        Raises:
            BundleError: it has loaded something else.
            EngineError: it does not answer.
        """
        with self._told():
            name, version = model.triton_name, str(model.version)
            answer = await self._client.get_model_config(name, version, client_timeout=self._timeout)
        config = answer.config
        graph = config.parameters["graph_sha256"].string_value if "graph_sha256" in config.parameters else ""
        if graph and graph != model.artifact.sha256:
            raise BundleError(
                f"Triton serves another graph of {model.name!r} ({graph[:16]}…) than the bundle publishes "
                f"({model.format}, {model.artifact.sha256[:16]}…); run `make export` and give Triton the new repository"
            )
        for kind, here, wanted in (
            ("inputs", config.input, model.manifest.signature.inputs),
            ("outputs", config.output, model.manifest.signature.outputs),
        ):
            found, named = [item.name for item in here], [tensor.name for tensor in wanted]
            if found != named:
                raise BundleError(f"Triton's {model.name!r} has {kind} {found}, bundle.json says {named}")
        # A group has its count on each of its GPUs.
        instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
        return max(1, int(config.max_batch_size)), max(1, int(instances))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what gRPC raises into the project's errors."""
        try:
            yield
        except InferenceServerException as error:
            raise self._translated(error) from error
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            # So it looks when the channel is closed under a call; otherwise it is the caller who gave up.
            mine = asyncio.current_task()
            if mine is not None and mine.cancelling():
                raise
            raise Gone(self._away() or "Triton went away") from error

    def _translated(self, error: InferenceServerException) -> Exception:
        status, message = str(error.status() or ""), str(error.message() or "")
        if status.endswith("DEADLINE_EXCEEDED"):
            return EngineTimeout(self._timeout)
        if status.endswith("INVALID_ARGUMENT"):
            # The gateway made the tensors, so this is a fault of ours and no state of the engine.
            return RuntimeError(f"Triton refuses the tensors: {message}")
        if "queue" in message.lower():
            return EngineUnavailable("Triton's queue is full")
        if "unknown model" in message.lower():
            return Missing("Triton has not loaded the model")
        if status.endswith(("UNAVAILABLE", "CANCELLED")):
            return Gone(self._away() or "Triton does not answer")
        return Failed("Triton failed to compute the answer")
