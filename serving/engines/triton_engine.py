"""A client of Triton over gRPC: the only file that imports tritonclient.

Maps what gRPC says to the project's errors, bounds every wait, and finds the server again after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineError, EngineTimeout, EngineUnavailable
from bundle.folder import sha256_of
from bundle.versions import is_kept
from serving.catalogue import ServedModel
from serving.engines import feeds, outputs_of
from serving.supervisor import Supervisor

# Seconds that a question about readiness may take.
READY_SECONDS = 1.0
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


class TritonEngine:
    """The engine for traffic: Triton merges the calls of all requests.

    Args:
        url: host:port of a Triton elsewhere; empty with a supervisor.
        supervisor: runs a Triton here, or None.
        timeout_seconds: bound of one call.
        start_seconds: how long to wait for a Triton elsewhere at the start.
    """

    name = "triton"

    def __init__(self, url: str, supervisor: Supervisor | None, timeout_seconds: float, start_seconds: float) -> None:
        self._url, self.supervisor = url.removeprefix("grpc://").split(",")[0].strip(), supervisor
        self._timeout, self._start_seconds = timeout_seconds, start_seconds
        self._client: triton_aio.InferenceServerClient | None = None
        self._client_url = ""
        # By id; those that answer, and those that were loaded beside them.
        self._models: dict[str, ServedModel] = {}
        # What was loaded at this gateway's word; a Triton elsewhere keeps what it had by itself.
        self._own: set[str] = set()
        self._rows: dict[str, int] = {}

    async def start(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.id: model for model in models}
        if self.supervisor:
            for model in models:
                await asyncio.to_thread(self._check_repository, model, self.supervisor.repository)
            await self.supervisor.start([model.triton_name for model in models])
            self._own = set(self._models)
        await self._until_ready()
        for model in models:
            await self._check_model(model)

    async def load(self, model: ServedModel) -> None:
        if self.supervisor:
            await asyncio.to_thread(self._check_repository, model, self.supervisor.repository)
        # One that is there already needs no order, and a Triton that polls its folder takes none.
        if await self._why_not(model):
            await self._order_load(model)
            self._own.add(model.id)
        try:
            await self._check_model(model)
        except BundleError:
            await self.unload(model)
            raise
        self._models[model.id] = model
        self._tell_supervisor()

    async def unload(self, model: ServedModel) -> None:
        self._models.pop(model.id, None)
        self._tell_supervisor()
        if model.id in self._own:
            with self._told():
                await (await self._connected()).unload_model(model.triton_name, client_timeout=self._start_seconds)
            self._own.discard(model.id)

    async def stop(self) -> None:
        if self._client:
            client, self._client = self._client, None
            await client.close()
        if self.supervisor:
            await self.supervisor.stop()

    async def ready(self) -> dict[str, str]:
        if self.supervisor and self.supervisor.state != "ready":
            return dict.fromkeys(self._models, f"Triton is {self.supervisor.state}")
        models = list(self._models.values())
        answers = await asyncio.gather(*(self._why_not(model) for model in models))
        return {model.id: why for model, why in zip(models, answers, strict=True) if why}

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        if self.supervisor and self.supervisor.state != "ready":
            raise self._away()
        inputs = []
        for tensor, (name, values) in zip(
            model.manifest.signature.inputs, feeds(model, input_ids, token_type_ids).items(), strict=True
        ):
            item = triton.InferInput(name, list(values.shape), _TYPES[tensor.dtype])
            item.set_data_from_numpy(values.astype(tensor.dtype, copy=False))
            inputs.append(item)
        outputs = outputs_of(model)
        with self._told():
            result = await (await self._connected()).infer(
                model.triton_name,
                inputs,
                model_version=str(model.manifest.version),
                outputs=[triton.InferRequestedOutput(name) for name in outputs],
                client_timeout=self._timeout,
            )
        return tuple(np.asarray(result.as_numpy(name), dtype=np.float32) for name in outputs)

    def rows_per_call(self, model: ServedModel) -> int:
        return self._rows.get(model.id, 1)

    def describe(self) -> str:
        if self.supervisor:
            return f"Triton from pip, process {self.supervisor.pid}, log in {_short(self.supervisor.log_file)}"
        return f"Triton at {self._url}"

    async def _connected(self) -> triton_aio.InferenceServerClient:
        """The client, made anew when the supervised server had to take another port."""
        url = self.supervisor.url if self.supervisor else self._url
        if self._client is None or url != self._client_url:
            old, self._client_url = self._client, url
            self._client = triton_aio.InferenceServerClient(url, channel_args=_CHANNEL)
            if old:
                await old.close()
        return self._client

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what gRPC raises into the project's errors."""
        try:
            yield
        except InferenceServerException as error:
            raise self._translated(error) from error

    def _translated(self, error: InferenceServerException) -> Exception:
        status, message = str(error.status() or ""), str(error.message() or "")
        if status.endswith("DEADLINE_EXCEEDED"):
            return EngineTimeout(self._timeout)
        if status.endswith("INVALID_ARGUMENT"):
            # The gateway made the tensors, so this is a fault of ours and no state of the engine.
            return RuntimeError(f"Triton refuses the tensors: {message}")
        if "queue" in message.lower():
            return EngineUnavailable("Triton's queue is full")
        if self.supervisor and self.supervisor.state != "ready":
            return self._away()
        if status.endswith(("UNAVAILABLE", "CANCELLED")):
            return EngineUnavailable("Triton does not answer")
        return EngineUnavailable("Triton failed to compute the answer")

    def _away(self) -> EngineUnavailable:
        assert self.supervisor
        return EngineUnavailable(f"Triton is {self.supervisor.state}", self.supervisor.retry_after)

    async def _until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._start_seconds
        while reasons := await self.ready():
            if self.supervisor or asyncio.get_running_loop().time() > deadline:
                name, why = next(iter(reasons.items()))
                raise EngineUnavailable(f"Triton at {self._client_url}: {name}: {why}")
            await asyncio.sleep(0.5)

    async def _why_not(self, model: ServedModel) -> str:
        try:
            with self._told():
                client = await self._connected()
                name, version = model.triton_name, str(model.version)
                if await client.is_model_ready(name, version, client_timeout=READY_SECONDS):
                    return ""
                return f"Triton has not loaded version {version}"
        except EngineTimeout:
            return "Triton does not answer"
        except EngineError as error:
            return str(error)

    async def _order_load(self, model: ServedModel) -> None:
        client = await self._connected()
        try:
            await client.load_model(model.triton_name, client_timeout=self._start_seconds)
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

    def _tell_supervisor(self) -> None:
        if self.supervisor:
            self.supervisor.models = [model.triton_name for model in self._models.values()]

    async def _check_model(self, model: ServedModel) -> None:
        """Compares what Triton has loaded with the manifest."""
        with self._told():
            client = await self._connected()
            answer = await client.get_model_config(model.triton_name, str(model.version), client_timeout=self._timeout)
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
        self._rows[model.id] = max(1, config.max_batch_size)

    def _check_repository(self, model: ServedModel, repository: Path) -> None:
        """The folder that the supervised Triton will load must hold the graph that the bundle publishes."""
        mend = "`python -m export version`" if is_kept(model.bundle.root) else "`make export`"
        folder = repository / model.triton_name
        config, graph = folder / "config.pbtxt", folder / str(model.manifest.version) / "model.onnx"
        if not config.is_file() or not graph.is_file():
            raise BundleError(f"{folder} does not hold version {model.manifest.version}; run {mend}")
        if 'backend: "python"' not in config.read_text(encoding="utf-8"):
            raise BundleError(
                f"{config} is for the native backend of NVIDIA's container, which the Triton from pip does not have; "
                "run `make export` without that flag, or set TRITON_URL"
            )
        if sha256_of(graph) != model.artifact.sha256:
            raise BundleError(
                f"{graph} is not the graph that {model.bundle.root} publishes ({model.format}): "
                f"the bundle is newer than the repository; run {mend}"
            )


def _short(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
