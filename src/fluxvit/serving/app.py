"""The HTTP routes."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxvit import __version__
from fluxvit.serving.errors import RequestError
from fluxvit.serving.fetching import fetch
from fluxvit.serving.schemas import (
    ChatAnswer,
    ChatRequest,
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    ErrorAnswer,
    ErrorBody,
    ModelAnswer,
    SearchAnswer,
    SearchRequest,
    VideoRequest,
)
from fluxvit.serving.service import Service

TOKEN = "FLUXVIT_SERVE_TOKEN"
"""The environment variable with the token that requests must carry."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The status of requests whose client has gone, as in nginx.
_GONE = 499
# Bytes that are copied in less time than another thread takes to begin.
_SMALL = 1 << 20
# Seconds for which the rest of a body that is too large is read.
_LINGER = 2
# Bytes of a JSON body, and of the fields beside a file.
_MOST_JSON = 1 << 16

Asked = TypeVar("Asked", bound=BaseModel)


def create_app(service: Service, token: str = "") -> FastAPI:
    """The web application around a service, which it closes at its end.

    Args:
        token: The bearer token of requests; if it is empty, none is asked for.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    # The pages of FastAPI's documentation load files from elsewhere.
    app = FastAPI(title="fluxvit", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    if token:
        app.add_middleware(_Authorized, token=token)
    app.exception_handler(RequestError)(_request_error)
    app.exception_handler(ClientDisconnect)(_client_has_gone)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unexpected)
    answers: dict[int | str, Any] = {
        status: {"model": ErrorAnswer}
        for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Whether requests are taken."""
        if service.draining:
            response.status_code = 503
            return {"status": "draining"}
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model")
    async def model() -> ModelAnswer:
        """What is served: tasks, classes, the cost of budgets, and limits."""
        return service.model()

    @app.post("/v1/classify", responses=answers, openapi_extra=_body(ClassifyRequest))
    async def classify(request: Request) -> ClassifyAnswer:
        """Classify a video at a budget."""
        return await _about_video(service, request, "classify", ClassifyRequest, service.classify)

    @app.post("/v1/embed", responses=answers, openapi_extra=_body(VideoRequest))
    async def embed(request: Request) -> EmbedAnswer:
        """The vector of a video at a budget."""
        return await _about_video(service, request, "embed", VideoRequest, service.embed)

    @app.post("/v1/chat", responses=answers, openapi_extra=_body(ChatRequest))
    async def chat(request: Request) -> ChatAnswer:
        """Answer a question about a video at a budget."""
        return await _about_video(service, request, "chat", ChatRequest, service.chat)

    @app.post("/v1/search", responses=answers, openapi_extra=_body(SearchRequest, video=False))
    async def search(request: Request) -> SearchAnswer:
        """Find moments in the indexed videos by a sentence."""
        async with _counted(service, "search"), service.admitted("search"):
            arrived = asyncio.get_running_loop().time()
            fields, _ = await _fields(request, service)
            return await service.search(_checked(SearchRequest, fields), arrived)

    page = {file.name: file.read_bytes() for file in (files("fluxvit.serving") / "page").iterdir()}

    @app.get("/", include_in_schema=False)
    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str = "index.html") -> Response:
        if name not in page:
            raise HTTPException(404, f"the page has no file {name!r}")
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return Response(page[name], headers=headers, media_type=_TYPES[Path(name).suffix])

    return app


def _body(model: type[BaseModel], video: bool = True) -> dict[str, Any]:
    """The OpenAPI description of a body, which FastAPI does not read itself: it has no limits on uploads."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": schema}}
    if video:
        properties = {"video": {"type": "string", "format": "binary"}, **schema["properties"]}
        content["multipart/form-data"] = {"schema": {**schema, "properties": properties}}
    return {"requestBody": {"required": True, "content": content}}


async def _about_video(
    service: Service,
    request: Request,
    task: str,
    model: type[Asked],
    answer: Callable[[Asked, str, str, float], Awaitable[Any]],
) -> Any:
    arrived = asyncio.get_running_loop().time()
    async with _counted(service, task), service.admitted(task):
        fields, upload = await _fields(request, service)
        asked = _checked(model, fields)
        assert isinstance(asked, VideoRequest)
        given = [name for name in ("path", "url") if getattr(asked, name) is not None]
        given += ["video"] if upload is not None else []
        if len(given) != 1:
            what = " and ".join(given) or "none of them"
            raise RequestError(400, "bad_request", f"give one of video, path and url; the request has {what}")
        if asked.path is not None:
            return await answer(asked, service.allowed_path(asked.path), asked.path, arrived)
        # Decoders are other processes, so that they need a file with a name.
        with tempfile.NamedTemporaryFile(prefix="fluxvit-", delete=True) as file:
            if upload is not None:
                name = Path(upload.filename or "the video").name
                if (upload.size or 0) > _SMALL:
                    await asyncio.to_thread(_copy, upload, file)
                else:
                    _copy(upload, file)
            else:
                assert asked.url is not None
                name = asked.url
                await fetch(asked.url, file, service.config)
            return await answer(asked, file.name, name, arrived)


def _copy(upload: UploadFile, file: Any) -> None:
    upload.file.seek(0)
    shutil.copyfileobj(upload.file, file)
    file.flush()


@asynccontextmanager
async def _counted(service: Service, task: str) -> AsyncIterator[None]:
    status = 500
    try:
        yield
        status = 200
    except RequestError as error:
        status = error.status
        raise
    except (ClientDisconnect, asyncio.CancelledError):
        status = _GONE
        raise
    finally:
        service.metrics.requests.labels(task, status).inc()


async def _fields(request: Request, service: Service) -> tuple[dict[str, Any], UploadFile | None]:
    """The fields of a request, and its file.

    Raises:
        RequestError: The body has another form, is too large, or takes too long to arrive.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    config = service.config
    if kind not in ("application/json", "multipart/form-data"):
        message = f"the content type is {kind or 'missing'!r}; send multipart/form-data or application/json"
        raise RequestError(415, "bad_content_type", message)
    most = _MOST_JSON if kind == "application/json" else config.max_bytes + _MOST_JSON
    limited = Request(request.scope, _limited(request, most))
    try:
        if kind == "application/json":
            fields = json.loads(await asyncio.wait_for(limited.body(), config.upload))
            if not isinstance(fields, dict):
                raise RequestError(400, "bad_request", "the JSON body is not an object of fields")
            return fields, None
        form = await asyncio.wait_for(limited.form(max_files=1, max_fields=16), config.upload)
    except asyncio.TimeoutError:
        message = f"the request did not arrive within {config.upload:g} s"
        raise RequestError(408, "slow_upload", message) from None
    except HTTPException as error:
        raise RequestError(
            error.status_code, "bad_request", f"the form cannot be read: {error.detail}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "bad_request", f"the body is not JSON ({error})") from None
    uploads = {name: value for name, value in form.items() if isinstance(value, UploadFile)}
    if set(uploads) - {"video"}:
        raise RequestError(400, "bad_request", f"the file is called {min(uploads)!r}; call it 'video'")
    upload = uploads.get("video")
    if upload is not None and upload.size == 0:
        raise RequestError(
            422, "unreadable_video", f"{upload.filename or 'the video'}: it is empty (0 bytes)"
        )
    # A field that is left empty in a form is not given.
    return {name: value for name, value in form.items() if isinstance(value, str) and value}, upload


def _limited(request: Request, most: int) -> Callable[[], Awaitable[Any]]:
    """The receiver of a request that raises a RequestError after ``most`` bytes."""
    received = 0

    async def receive() -> Any:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            if message.get("more_body"):
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(_discard(request), _LINGER)
            raise RequestError(413, "too_large", f"the body has more than {most} bytes")
        return message

    return receive


async def _discard(request: Request) -> None:
    """Read on, because closing a connection with unread bytes resets it, and the answer may be lost."""
    while (await request.receive()).get("more_body"):
        pass


def _checked(model: type[Asked], fields: dict[str, Any]) -> Asked:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RequestError(400, "bad_request", f"the field {name!r}: {first['msg']}") from None


class _Authorized:
    """Refuses requests without the token, except for the page and for what asks whether the server lives."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            public = path in ("/", "/health", "/ready") or path.startswith("/page/")
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            right = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._token)
            if not (public or right):
                message = "the request needs the header Authorization: Bearer TOKEN"
                return await _error(RequestError(401, "unauthorized", message))(scope, receive, send)
        await self._app(scope, receive, send)


def _error(error: RequestError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413, 429, 503):
        headers["Connection"] = "close"  # The rest of the body is not read.
    body = ErrorAnswer(error=ErrorBody(type=error.kind, message=error.message))
    return JSONResponse(body.model_dump(), error.status, headers)


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error)


async def _client_has_gone(_: Request, error: Exception) -> Response:
    return Response(status_code=_GONE)  # Nobody reads it.


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = "not_found" if error.status_code == 404 else "bad_request"
    return _error(
        RequestError(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}")
    )


async def _unexpected(_: Request, error: Exception) -> Response:
    message = "the server made a mistake; its log has the details"
    return _error(RequestError(500, "internal", message))


def server_token() -> str:
    """The token of the environment; empty if there is none."""
    return os.environ.get(TOKEN, "")
