"""What computes logits: one protocol, an in-process ONNX Runtime and a client of Triton."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from bundle.decode import FloatArray
from bundle.encode import IntArray

if TYPE_CHECKING:
    from serving.catalogue import ServedModel
    from serving.settings import Settings


# What `Engine.statistics` tells of a model: calls, computations, windows, and the seconds of the parts of a call.
STATISTICS = ("calls", "computations", "windows", "queue", "input", "compute", "output")


class Watcher(Protocol):
    """Told what an engine does, by a thread of the engine's."""

    def computed(self, model: str, windows: int) -> None:
        """One computation of so many windows began."""


class Computing(Protocol):
    """Computes logits of windows; knows no text and no HTTP."""

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        """Logits of some windows, from one forward pass.

        Args:
            input_ids: int64 (windows, tokens), padded with the bundle's pad id.
            token_type_ids: int64 (windows, tokens).

        Returns:
            the outputs of the model's signature in its order: float32 (windows, labels), or (windows, tokens, labels)
            of what is said of each token.

        Raises:
            EngineUnavailable: not reachable, died, or its own queue is full.
            EngineTimeout: no answer in time.
        """

    def rows_per_call(self, model: ServedModel) -> int:
        """Most windows in one call of `infer`."""

    def parallel(self, model: ServedModel) -> int:
        """Computations of a model that the engine does at the same time."""


class Engine(Computing, Protocol):
    """What computes, from its start to its end, and which models it has.

    Attributes:
        watcher: told of what is computed where the engine itself knows it; set before the start.
    """

    name: str
    watcher: Watcher | None

    async def start(self, models: Sequence[ServedModel]) -> None:
        """Loads the models and returns when each can answer.

        Raises:
            BundleError: a model cannot be loaded or is not the one that the bundle publishes.
            EngineUnavailable: the engine does not start.
        """

    def watch(self, prove: Callable[[ServedModel], Awaitable[object]]) -> None:
        """From now on, what went away and came back takes calls again only when it was proved.

        Args:
            prove: passes a model's golden rows through `infer`; raises BundleError where they do not agree.
        """

    async def stop(self) -> None:
        """Ends what `start` began; can be called twice, and after a failed start."""

    async def load(self, model: ServedModel) -> None:
        """Loads one more version beside those that answer, and returns when it can answer too.

        After a failure, and after a proof that fails, the caller unloads it.

        Raises:
            BundleError: as `start`, or the engine takes no models while it runs.
            EngineUnavailable: the engine cannot load now.
        """

    async def unload(self, model: ServedModel) -> None:
        """Lets go of a version that nothing asks any more; one that is not loaded is left as it is.

        Raises:
            EngineUnavailable: the engine cannot do so now.
        """

    def abandon(self) -> None:
        """Ends at once what a `stop`, under way or to come, would wait for."""

    def check_open(self, model: ServedModel) -> None:
        """Whether a new request may come in; those that are in already are carried over an outage by `infer`.

        Raises:
            EngineUnavailable: the engine is away.
        """

    async def ready(self) -> dict[str, str]:
        """Why versions cannot answer now: id → reason; empty when all can. Never raises, and is quick."""

    @property
    def troubles(self) -> tuple[int, int]:
        """How often the engine was started anew, and how many calls were asked a second time."""

    async def statistics(self) -> dict[str, dict[str, float]]:
        """What another server counted of each model since it started, summed: `STATISTICS`; empty where there is none.

        Never raises, and is quick: what cannot be asked is left out.
        """

    def describe(self) -> str:
        """The engine in a few words, for the start-up summary."""


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for; not started."""
    # Imported here: each engine loads a large library that the other does not need.
    if settings.engine == "onnx":
        from serving.engines.onnx_engine import OnnxEngine

        return OnnxEngine()
    from serving.engines.triton_engine import TritonEngine
    from serving.supervisor import Supervisor

    if settings.triton_url:
        supervisor = None
    else:
        supervisor = Supervisor(
            settings.model_repository,
            settings.log_folder,
            settings.threads,
            settings.start_seconds,
            settings.triton_cache_mib,
            settings.otlp_endpoint,
        )
    return TritonEngine(
        settings.triton_urls,
        supervisor,
        timeout_seconds=settings.most_seconds,
        start_seconds=settings.start_seconds,
        hang_seconds=settings.hang_seconds,
        recover_seconds=settings.recover_seconds,
    )


def feeds(model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> dict[str, IntArray]:
    """The model's input tensors by the names that its manifest gives them."""
    tensors = model.manifest.signature.inputs
    return {tensor.name: values for tensor, values in zip(tensors, (input_ids, token_type_ids), strict=False)}


def outputs_of(model: ServedModel) -> list[str]:
    """The names of the model's output tensors, in the order in which an engine returns them."""
    return [tensor.name for tensor in model.manifest.signature.outputs]
