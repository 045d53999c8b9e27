"""``POST /models/{model}``, which two dialects share: Hugging Face's sends ``inputs``, PaddleNLP's ``data``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from bundle.errors import RequestError
from serving.routes import chosen, gateway_of, huggingface, paddlenlp, reads
from serving.routes.tei import TeiError, responses
from serving.schemas import parse_object

router = APIRouter(tags=["Hugging Face inference", "PaddleNLP SimpleServer"])


@router.post(
    "/models/{model}",
    response_model=huggingface.Said | paddlenlp.PaddleResult,
    responses={
        status: {**said, "model": TeiError | paddlenlp.PaddleError}
        for status, said in {
            **responses(400, 401, 404, 413, 422, 424, 429, 503),
            504: {"description": "no answer in time"},
        }.items()
    },
    openapi_extra=reads(huggingface.HfRequest, paddlenlp.PaddleRequest),
    summary="Answer in the dialect of the body",
)
async def ask(model: str, request: Request) -> Response:
    """`{"inputs": …}` is answered as Hugging Face's inference API does, `{"data": …}` as PaddleNLP's SimpleServer."""
    gateway = gateway_of(request)
    raw = await request.body()
    body = parse_object(raw)
    if "data" in body:
        # From here on an error leaves in that dialect's shape.
        request.state.dialect = "paddlenlp"
        return await paddlenlp.answered(gateway, chosen(request, model, raw), body)
    if "inputs" not in body:
        raise RequestError("body", "the body has neither inputs (Hugging Face) nor data (PaddleNLP)")
    return await huggingface.answered(gateway, chosen(request, model, raw), body)
