"""One Triton over gRPC: the only file that imports tritonclient.

Maps what gRPC says to the project's errors and bounds every wait. Whether a call is asked again, and of whom, is the
engine's part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from bundle.buckets import PARAMETER, bucket_names, read
from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineTimeout, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import STATISTICS, feeds, outputs_of
from serving.engines.triton_buckets import joined, split
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

T = TypeVar("T")


class Gone(EngineUnavailable):
    """The connection is refused or broke."""


class Failed(EngineUnavailable):
    """The server is there, and could not compute the call: its stub died, or the model raised an error."""


class Missing(EngineUnavailable):
    """The server is there, and has not loaded the model: it is stopping, say, or somebody unloaded it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a server has loaded of a model.

    Attributes:
        rows: most windows of one call.
        instances: computations that it does at the same time; of length buckets, which share its cores, those of one.
        buckets: lengths of windows that have a model each, ascending, in tokens; none where one model takes all.
    """

    rows: int
    instances: int
    buckets: tuple[int, ...] = ()

    def names(self, model: ServedModel) -> list[str]:
        """What Triton calls the models that answer for this one."""
        return list(bucket_names(model.triton_name, self.buckets).values())


# Of a model that was not looked at yet.
UNKNOWN = Loaded(1, 1)


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

    async def infer(
        self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray, loaded: Loaded = UNKNOWN
    ) -> tuple[FloatArray, ...]:
        """As `Engine.infer`; windows go to the length buckets that hold them, at the same time.

        Raises:
            Gone, Missing, Failed: it may be asked again.
            EngineUnavailable, EngineTimeout: asking again would not help.
        """
        if not loaded.buckets:
            return await self._infer(model, model.triton_name, input_ids, token_type_ids)
        names = bucket_names(model.triton_name, loaded.buckets)
        parts = split(input_ids, token_type_ids, model.manifest.text.pad_id, loaded.buckets)
        asked = [self._infer(model, names[part.tokens], part.input_ids, part.token_type_ids) for part in parts]
        return joined(parts, await _all(asked), *input_ids.shape)

    async def _infer(
        self, model: ServedModel, name: str, input_ids: IntArray, token_type_ids: IntArray
    ) -> tuple[FloatArray, ...]:
        inputs = []
        for tensor, (input_name, values) in zip(
            model.manifest.signature.inputs, feeds(model, input_ids, token_type_ids).items(), strict=True
        ):
            item = triton.InferInput(input_name, list(values.shape), _TYPES[tensor.dtype])
            item.set_data_from_numpy(values.astype(tensor.dtype, copy=False))
            inputs.append(item)
        outputs = outputs_of(model)
        with outgoing("triton ModelInfer") as headers, self._told():
            result = await self._client.infer(
                name,
                inputs,
                model_version=str(model.version),
                outputs=[triton.InferRequestedOutput(output) for output in outputs],
                headers=headers,
                client_timeout=self._timeout,
            )
        return tuple(np.asarray(result.as_numpy(output), dtype=np.float32) for output in outputs)

    async def lacking(
        self, models: Sequence[ServedModel], loaded: Callable[[ServedModel], Loaded] = lambda model: UNKNOWN
    ) -> dict[str, str]:
        """The models that the server cannot answer for, by id, and why.

        Args:
            loaded: what is known of a model from before, for its length buckets.

        Raises:
            EngineError: it does not answer.
        """
        asked = (self._is_ready(model, loaded(model)) for model in models)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return {
            model.id: f"Triton has not loaded version {model.version}"
            for model, answer in zip(models, answers, strict=True)
            if not answer
        }

    async def _is_ready(self, model: ServedModel, loaded: Loaded) -> bool:
        with self._told():
            for name in loaded.names(model):
                if not await self._client.is_model_ready(name, str(model.version), client_timeout=READY_SECONDS):
                    return False
        return True

    async def load(self, model: ServedModel, seconds: float) -> None:
        """Has the server load a model and its length buckets, each of which may take so many seconds.

        Raises:
            BundleError: it cannot, or takes no models while it runs.
            EngineError: it does not answer.
        """
        await self._load(model.triton_name, seconds)
        try:
            # Which buckets there are stands in what was loaded.
            for name in Loaded(1, 1, _buckets_of(await self._config(model, model.triton_name))).names(model):
                if name != model.triton_name:
                    await self._load(name, seconds)
        except BaseException:
            with contextlib.suppress(InferenceServerException):
                await self._client.unload_model(model.triton_name, client_timeout=READY_SECONDS)
            raise

    async def _load(self, name: str, seconds: float) -> None:
        try:
            await self._client.load_model(name, client_timeout=seconds)
        except InferenceServerException as error:
            message = str(error.message() or "")
            if "not allowed" in message:
                raise BundleError(
                    "this Triton takes no models while it runs; start it with --model-control-mode=explicit "
                    f"--load-model=*, or restart it with {name} in its repository"
                ) from error
            if str(error.status() or "").endswith(("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")):
                raise self._translated(error) from error
            # What follows the first line is where in a script it happened.
            raise BundleError(f"Triton cannot load {name}: {message.partition(chr(10))[0]}") from error

    async def unload(self, model: ServedModel, seconds: float, loaded: Loaded = UNKNOWN) -> None:
        """Has the server let go of a model and its length buckets, each of which may take so many seconds.

        Raises:
            EngineError: it does not answer.
        """
        with self._told():
            for name in loaded.names(model):
                await self._client.unload_model(name, client_timeout=seconds)

    async def statistics(self, model: ServedModel, loaded: Loaded = UNKNOWN) -> dict[str, float]:
        """As `Engine.statistics`, of one model; with length buckets, of all of them together.

        Raises:
            EngineError: it does not answer.
        """
        found = dict.fromkeys(STATISTICS, 0.0)
        for name in loaded.names(model):
            with self._told():
                answer = await self._client.get_inference_statistics(
                    name, str(model.version), client_timeout=READY_SECONDS
                )
            (told,) = answer.model_stats
            sums = told.inference_stats
            parts = (sums.queue, sums.compute_input, sums.compute_infer, sums.compute_output)
            counts = (sums.success.count, told.execution_count, told.inference_count)
            for key, value in zip(STATISTICS, (*counts, *(part.ns / 1e9 for part in parts)), strict=True):
                found[key] += value
        return found

    async def check(self, model: ServedModel) -> Loaded:
        """Compares what the server has loaded with the manifest.

        Raises:
            BundleError: it has loaded something else.
            EngineError: it does not answer.
        """
        config = await self._config(model, model.triton_name)
        buckets = _buckets_of(config)
        found = [self._compared(model, config, buckets[-1] if buckets else 0)]
        for tokens, name in bucket_names(model.triton_name, buckets).items():
            if name != model.triton_name:
                try:
                    found.append(self._compared(model, await self._config(model, name), tokens))
                except Missing as missing:
                    raise Missing(f"Triton has not loaded {name}, a length bucket of {model.name!r}") from missing
        return Loaded(min(rows for rows, _ in found), min(instances for _, instances in found), buckets)

    async def _config(self, model: ServedModel, name: str) -> Any:
        with self._told():
            answer = await self._client.get_model_config(name, str(model.version), client_timeout=self._timeout)
        return answer.config

    def _compared(self, model: ServedModel, config: Any, tokens: int) -> tuple[int, int]:
        """Most windows of one call, and computations at the same time, of one model that was loaded.

        Args:
            tokens: of the windows that it must take; 0 for all lengths.
        """
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
        dims = [list(item.dims) for item in config.input]
        if tokens and dims != [[tokens]] * len(dims):
            raise BundleError(f"Triton's {config.name!r} takes windows of {dims}, its length bucket is {tokens} tokens")
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


def _buckets_of(config: Any) -> tuple[int, ...]:
    """The length buckets that a model's configuration names, ascending, in tokens."""
    return read(config.parameters[PARAMETER].string_value) if PARAMETER in config.parameters else ()


async def _all(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Makes calls at the same time; the first that fails ends the others, and its error is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
