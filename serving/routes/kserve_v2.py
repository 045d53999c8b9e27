"""The Open Inference Protocol V2 (KServe, Triton) over HTTP, with the binary data extension, under ``/v2``.

Takes care of what is HTTP and JSON; what the tensors mean is `serving.kserve`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bundle.errors import EngineUnavailable, MalformedRequest, RequestError
from serving.kserve import (
    EXTENSIONS,
    NAME,
    VERSION,
    Asked,
    Column,
    Given,
    Wanted,
    find,
    infer,
    inputs_of,
    outputs_of,
    unpacked,
    versions_of,
)
from serving.routes import gateway_of, reads
from serving.schemas import parse_as

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol V2"])

# The bytes of the JSON before the binary data; in requests and in answers.
HEADER_LENGTH = "Inference-Header-Content-Length"


class _Strict(BaseModel):
    # Unlike on native routes, unknown fields pass: the protocol's extensions add some that mean nothing here.
    model_config = ConfigDict(strict=True, frozen=True)


class TensorParameters(_Strict):
    binary_data_size: int | None = Field(default=None, ge=0, description="bytes after the JSON that are this tensor's")


class InputTensor(_Strict):
    """One input: its elements are in ``data``, or after the JSON where ``binary_data_size`` is given."""

    name: str
    datatype: str = Field(description="BYTES")
    shape: list[int] = Field(description="[texts] or [texts, 1]")
    parameters: TensorParameters = TensorParameters()
    data: list[JsonValue] | None = Field(default=None, description="the texts, flat or nested as the shape has them")


class OutputParameters(_Strict):
    binary_data: bool | None = Field(default=None, description="whether it leaves as bytes after the JSON")
    classification: int = Field(default=0, ge=0, description='of "scores": so many best labels instead of the numbers')


class RequestedOutput(_Strict):
    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Strict):
    """Texts to be answered, as tensors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["这家酒店位置很好。"]}],
                    "outputs": [{"name": "label"}, {"name": "score"}],
                }
            ]
        }
    )

    id: str | None = Field(default=None, description="comes back with the answer")
    inputs: list[InputTensor] = Field(min_length=1)
    outputs: list[RequestedOutput] = Field(default=[], description="all when left out")
    parameters: dict[str, JsonValue] = Field(
        default={},
        description="top_k, return_windows, truncate and offset_unit as on the native route; binary_data_output",
    )


class KserveError(BaseModel):
    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 stands for the number of texts")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


_ERRORS: dict[int, dict[str, Any]] = {
    400: {"model": KserveError, "description": "not JSON, or a field, tensor or text is wrong"},
    401: {"model": KserveError, "description": "a key is needed"},
    404: {"model": KserveError, "description": "no such model or version"},
    413: {"model": KserveError, "description": "a text, the list or the body is above its limit"},
    429: {"model": KserveError, "description": "full, or more than the key may ask for; see Retry-After"},
    503: {"model": KserveError, "description": "the engine cannot answer now; see Retry-After"},
    504: {"model": KserveError, "description": "no answer in time"},
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


@router.get("", response_model=ServerMetadata, summary="The server and its extensions")
async def server_metadata() -> ServerMetadata:
    """Name, version and the extensions of the protocol that are spoken here."""
    return ServerMetadata(name=NAME, version=VERSION, extensions=list(EXTENSIONS))


@router.get("/health/live", response_class=Response, summary="Is the process alive?")
async def live() -> Response:
    """200 as long as the process answers at all."""
    return Response()


@router.get("/health/ready", response_class=Response, responses=_errors(503), summary="Can every model answer?")
async def ready(request: Request) -> Response:
    """200 when every model can answer."""
    if reasons := await gateway_of(request).not_ready():
        name, why = next(iter(reasons.items()))
        raise EngineUnavailable(f"{name}: {why}")
    return Response()


@router.get("/models/{model}", response_model=ModelMetadata, responses=_errors(404), summary="A model's tensors")
@router.get("/models/{model}/versions/{version}", response_model=ModelMetadata, responses=_errors(404))
async def model_metadata(model: str, request: Request, version: str = "") -> ModelMetadata:
    """Names, types and shapes of what a model reads and answers."""
    gateway = gateway_of(request)
    served = find(gateway, model, version)
    inputs, outputs = (
        [TensorMetadata(name=item.name, datatype=item.datatype, shape=list(item.shape)) for item in side]
        for side in (inputs_of(served), outputs_of(served))
    )
    return ModelMetadata(
        name=served.name,
        versions=versions_of(gateway, served),
        platform=f"{NAME}_{served.format}",
        inputs=inputs,
        outputs=outputs,
    )


@router.get(
    "/models/{model}/ready", response_class=Response, responses=_errors(404, 503), summary="Can this model answer?"
)
@router.get("/models/{model}/versions/{version}/ready", response_class=Response, responses=_errors(404, 503))
async def model_ready(model: str, request: Request, version: str = "") -> Response:
    """200 when this model can answer."""
    gateway = gateway_of(request)
    await gateway.check_ready(find(gateway, model, version))
    return Response()


@router.post(
    "/models/{model}/infer",
    responses=_errors(400, 401, 404, 413, 429, 503, 504),
    openapi_extra=reads(InferRequest),
    summary="Answer texts in BYTES tensors",
)
@router.post(
    "/models/{model}/versions/{version}/infer",
    responses=_errors(400, 401, 404, 413, 429, 503, 504),
    openapi_extra=reads(InferRequest),
)
async def infer_texts(model: str, request: Request, version: str = "") -> Response:
    """The tensor ``text`` (of a model of pairs also ``pair``) in; label, scores and the prediction as JSON out."""
    body = await request.body()
    wanted, rest = _read(body, request.headers)
    asked = Asked(
        model,
        version,
        _inputs(wanted, rest),
        tuple(Wanted(item.name, item.parameters.classification) for item in wanted.outputs),
        wanted.parameters,
        body,
    )
    served, columns = await infer(gateway_of(request), asked)
    request.state.model_version = served.version
    said = {item.name: item.parameters.binary_data for item in wanted.outputs}
    default = wanted.parameters.get("binary_data_output") is True
    head: dict[str, Any] = {"model_name": served.name, "model_version": str(served.manifest.version)}
    if wanted.id is not None:
        head["id"] = wanted.id
    chosen = [default if (own := said.get(column.name)) is None else own for column in columns]
    return _answer(head, columns, chosen)


def _read(body: bytes, headers: Mapping[str, str]) -> tuple[InferRequest, memoryview]:
    """The JSON of a request, and the binary data behind it."""
    if (coding := headers.get("content-encoding", "identity")) != "identity":
        raise MalformedRequest("body", f"Content-Encoding {coding!r} is not read here; send it uncompressed")
    length = len(body)
    if (announced := headers.get(HEADER_LENGTH)) is not None:
        if not re.fullmatch(r"[0-9]{1,12}", announced) or int(announced) > length:
            raise RequestError(HEADER_LENGTH, f"{HEADER_LENGTH} is {announced[:20]!r}; the body has {length} bytes")
        length = int(announced)
    return parse_as(InferRequest, body[:length]), memoryview(body)[length:]


def _inputs(wanted: InferRequest, rest: memoryview) -> tuple[Given, ...]:
    inputs, at = [], 0
    for item in wanted.inputs:
        size = item.parameters.binary_data_size
        if (size is None) == (item.data is None):
            raise RequestError("inputs", f"{item.name!r} needs either data or binary_data_size")
        values: list[str | bytes]
        if size is None:
            values = [*_flat(item)]
        else:
            if size > len(rest) - at:
                raise RequestError(
                    "inputs", f"{item.name!r} says {size} bytes of binary data, and {len(rest) - at} are left"
                )
            values = [*unpacked(bytes(rest[at : at + size]), item.name)]
            at += size
        inputs.append(Given(item.name, item.datatype, tuple(item.shape), values))
    if at != len(rest):
        raise RequestError("inputs", f"{len(rest) - at} bytes of binary data are no input's")
    return tuple(inputs)


def _flat(item: InputTensor) -> list[str]:
    """The texts of a JSON tensor, which may be nested as its shape is."""
    found: list[str] = []
    for value in item.data or []:
        for element in value if isinstance(value, list) else [value]:
            if not isinstance(element, str):
                raise RequestError("inputs", f"element {len(found)} of {item.name!r} is no text")
            found.append(element)
    return found


def _answer(head: dict[str, Any], columns: list[Column], binary: list[bool]) -> Response:
    tail: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for column, packed in zip(columns, binary, strict=True):
        output = {"name": column.name, "datatype": column.datatype, "shape": list(column.shape)}
        if packed:
            tail.append(column.packed())
            outputs.append({**output, "parameters": {"binary_data_size": len(tail[-1])}})
        else:
            outputs.append({**output, "data": column.listed()})
    text = json.dumps({**head, "outputs": outputs}, ensure_ascii=False).encode()
    if not tail:
        return Response(text, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(b"".join([text, *tail]), headers=headers, media_type="application/octet-stream")
