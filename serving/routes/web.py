"""The pages: the playground at ``/`` and the API's documentation at ``/docs``.

Everything they load comes from here, and the Content-Security-Policy lets a browser load nothing else, run no script
that stands in a page, and show neither page inside another one. The files are `serving/web/` and Swagger UI's, which
the package fastapi-swagger carries; nothing else of it is used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_OURS = files("serving") / "web"
_SWAGGER = files("fastapi_swagger.resources")
# By folder of the URL: which files are there, and where each lies.
_FILES = {
    "playground": dict.fromkeys(
        ("index.html", "style.css", "app.js", "api.js", "answer.js", "windows.js", "words.js", "icon.svg"), _OURS
    ),
    "docs": {
        "docs.html": _OURS,
        "docs.js": _OURS,
        "swagger-ui-bundle.js": _SWAGGER,
        "swagger-ui.css": _SWAGGER,
    },
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time and is mostly told that nothing changed: no page of one version with a script of another.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


@cache
def _read(folder: str, name: str) -> _File:
    """A file of the table above, which never changes while the server runs."""
    content = (_FILES[folder][name] / name).read_bytes()
    return _File(content, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def _answer(request: Request, folder: str, name: str) -> Response:
    if name not in _FILES[folder]:
        raise HTTPException(404)
    file = _read(folder, name)
    headers = {**_HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@router.get("/")
async def playground(request: Request) -> Response:
    """The playground."""
    return _answer(request, "playground", "index.html")


@router.get("/playground/{name}")
async def playground_file(name: str, request: Request) -> Response:
    """What the playground loads."""
    return _answer(request, "playground", name)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI on this server's own description."""
    return _answer(request, "docs", "docs.html")


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """What the documentation page loads."""
    return _answer(request, "docs", name)
