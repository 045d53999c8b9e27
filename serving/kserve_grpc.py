"""The Open Inference Protocol V2 over gRPC, on a port of its own, for clients of Triton and KServe.

Takes care of what is gRPC; what the tensors mean is `serving.kserve`. The messages are those that tritonclient ships:
one of the two files that import it (`docs/decisions/0006-dialects.md`), and the only one that takes calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages

from bundle.errors import EngineUnavailable, ModelUnknown, RequestError, SlipwayError
from serving.admission import TERMS
from serving.door import log, read_terms
from serving.errors import kind_of, problem_body, retry_after
from serving.gateway import Gateway
from serving.kserve import (
    EXTENSIONS,
    NAME,
    VERSION,
    Asked,
    Given,
    Wanted,
    find,
    infer,
    inputs_of,
    outputs_of,
    unpacked,
    versions_of,
)

Handler = Callable[[Any, Any, Any], Awaitable[Any]]

SERVICE = "inference.GRPCInferenceService"
CALLS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
# Statuses that are no fault of the caller's.
_OURS = ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
# Bytes of a message beside its texts: names, shapes, parameters.
_ENVELOPE = 64 << 10


def _answering(work: Handler) -> Handler:
    """Gives a call what `serving.door` gives a request: an id, the measuring, the last catch of errors."""
    route = f"grpc {work.__name__}"

    async def call(front: Front, request: Any, context: Any) -> Any:
        told = dict(context.invocation_metadata() or ())
        measuring, status = front.gateway.measuring, "CANCELLED"
        given = (str(told.get(name, "")) for name in ("x-request-id", "traceparent", "tracestate"))
        asked = measuring.begin("", *given)
        ids = (("x-request-id", asked.request_id), ("traceparent", asked.traceparent))
        context.set_trailing_metadata(ids)
        try:
            if work.__name__ == "ModelInfer":
                caller = front.gateway.keys.caller(told.get("authorization"))
                terms = read_terms(told, front.gateway.settings, caller)
                # gRPC has a deadline of its own; the shorter one holds. A client that goes cancels the call.
                if (left := context.time_remaining()) is not None:
                    terms = replace(terms, seconds=min(terms.seconds, left))
                TERMS.set(terms)
                front.gateway.check_room(request.model_name, terms)
            answer = await work(front, request, context)
            status = "OK"
            return answer
        except Exception as error:
            kind = kind_of(error)
            status = kind.grpc
            if kind.status == 500:
                log.exception("request %s failed", asked.request_id)
            measuring.telemetry.errors.labels(kind.name).inc()
            trailing = list(ids)
            if (seconds := retry_after(error)) is not None:
                trailing.append(("retry-after", str(seconds)))
            detail = problem_body(error, asked.request_id).detail
            return await context.abort(getattr(grpc.StatusCode, status), detail, tuple(trailing))
        finally:
            measuring.end(asked, route, status, failed=status in _OURS)

    return call


class Front:
    """The calls that a classifier has; the others of the service answer UNIMPLEMENTED.

    Args:
        host, port: the address to take calls on, bound at once and answering from `start` on.

    Raises:
        SlipwayError: the address is taken.
    """

    def __init__(self, gateway: Gateway, host: str, port: int) -> None:
        self.gateway = gateway
        most = gateway.settings.max_body_bytes + _ENVELOPE
        # Two servers on one port would each get some of the calls.
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)])
        # Only what is there: the protocol's own base class raises in every other call, which is then logged as a fault
        # of the server.
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, name),
                request_deserializer=getattr(messages, f"{name}Request").FromString,
                response_serializer=getattr(messages, f"{name}Response").SerializeToString,
            )
            for name in CALLS
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise SlipwayError(
                f"cannot take gRPC calls on {self.address}; choose another SLIPWAY_GRPC_PORT, or 0 to leave it off"
            ) from error

    async def start(self) -> None:
        """Takes calls from now on."""
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Takes no new calls, and lets those under way go on for so long."""
        await self._server.stop(seconds)

    @_answering
    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    @_answering
    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=not await self.gateway.not_ready())

    @_answering
    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            await self.gateway.check_ready(find(self.gateway, request.name, request.version))
        except (ModelUnknown, EngineUnavailable):
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    @_answering
    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(name=NAME, version=VERSION, extensions=EXTENSIONS)

    @_answering
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        model = find(self.gateway, request.name, request.version)
        described = messages.ModelMetadataResponse.TensorMetadata
        inputs, outputs = (
            [described(name=item.name, datatype=item.datatype, shape=item.shape) for item in side]
            for side in (inputs_of(model), outputs_of(model))
        )
        return messages.ModelMetadataResponse(
            name=model.name,
            versions=versions_of(self.gateway, model),
            platform=f"{NAME}_{model.format}",
            inputs=inputs,
            outputs=outputs,
        )

    @_answering
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        model, columns = await infer(self.gateway, _asked(request))
        output = messages.ModelInferResponse.InferOutputTensor
        return messages.ModelInferResponse(
            model_name=model.name,
            model_version=str(model.manifest.version),
            id=request.id,
            outputs=[output(name=item.name, datatype=item.datatype, shape=item.shape) for item in columns],
            raw_output_contents=[item.packed() for item in columns],
        )


def _asked(request: Any) -> Asked:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError("inputs", f"{len(request.inputs)} inputs and {len(raw)} raw contents; they must be as many")
    inputs = []
    for index, item in enumerate(request.inputs):
        values = unpacked(raw[index], item.name) if raw else list(item.contents.bytes_contents)
        inputs.append(Given(item.name, item.datatype, tuple(item.shape), values))
    wanted = [Wanted(item.name, _classes(item)) for item in request.outputs]
    parameters = {name: _value(parameter) for name, parameter in request.parameters.items()}
    return Asked(
        request.model_name,
        request.model_version,
        tuple(inputs),
        tuple(wanted),
        parameters,
        request.SerializeToString(deterministic=True),
    )


def _classes(output: Any) -> int:
    parameter = output.parameters.get("classification")
    value = 0 if parameter is None else _value(parameter)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError("outputs", f"the classification of {output.name!r} must be a whole number")
    return value


def _value(parameter: Any) -> Any:
    """What a parameter holds, whichever of its fields it is in; None of an empty one."""
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
