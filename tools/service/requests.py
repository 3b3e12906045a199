"""Reading of requests: limits of bodies, images in forms, and clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from tools.service.service_settings import ServiceSettings
from utils.core.errors import UserError
from utils.core.http_client import fetch_bytes

IMAGE_TYPES = ("image/", "application/octet-stream")  # prefixes of the content types of raw image bodies
CLIENT_CLOSED_REQUEST = 499  # nginx's status for clients that disconnect; it appears in the metrics only

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")


class BodyLimitMiddleware:
    """ASGI middleware that rejects large bodies: by the announced length, else while they are received.

    Args:
        app: The application.
        max_bytes: Maximum size of a body.
        max_total_bytes: Maximum size of the bodies of all requests in progress.
    """

    def __init__(self, app: Any, max_bytes: int, max_total_bytes: int) -> None:
        self.app, self.max_bytes, self.max_total_bytes = app, max_bytes, max_total_bytes
        self.total = 0  # bytes received for the requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        text = f"the body is larger than {self.max_bytes / 2**20:g} MiB"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:18]) > self.max_bytes:
            await JSONResponse({"detail": text}, 413)(scope, receive, send)  # the server discards the rest of the body
            return
        received = 0

        async def receive_limited() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self.total += size
            if received > self.max_bytes:
                raise HTTPException(413, text, {"Connection": "close"})
            if self.total > self.max_total_bytes:
                busy = "too many bytes are in progress; try again later"
                raise HTTPException(503, busy, {"Connection": "close", "Retry-After": "1"})
            return message

        try:
            await self.app(scope, receive_limited, send)
        finally:
            self.total -= received


class _InMemoryParser(MultiPartParser):
    """Form parser that keeps files in memory; their size is limited by `BodyLimitMiddleware`."""

    spool_max_size = 1 << 40


async def read_images(request: Request, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    """Read the images of a request: a raw image body, or files and URLs in a form.

    Args:
        request: The request.
        settings: Limits.

    Returns:
        Name and encoded bytes of each image.

    Raises:
        HTTPException: 400, 413, 415 or 422 if the body has no usable images, 499 if the client disconnects.
    """
    content_type = request.headers.get("content-type", "").lower()
    try:
        if content_type.startswith("multipart/form-data"):
            return await _read_form(request, settings)
        if not content_type.startswith(IMAGE_TYPES):
            text = (
                "unsupported content type; send image/... or multipart/form-data with files (curl -F image=@photo.jpg)"
            )
            raise HTTPException(415, text)
        body = await request.body()
    except ClientDisconnect as error:
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client has disconnected") from error
    if not body:
        raise HTTPException(400, "the body is empty; send an image")
    return [("image", body)]


async def _read_form(request: Request, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    limit = settings.max_images
    parser = _InMemoryParser(request.headers, request.stream(), max_files=limit, max_fields=limit)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(413 if error.message.startswith("Too many") else 400, error.message) from error
    except (FormParserError, ValueError, LookupError) as error:  # LookupError: unknown character sets
        raise HTTPException(400, "the form is damaged") from error
    try:
        return await _images_of_form(form, settings)
    finally:
        for file in parser._files_to_close_on_error:  # includes incomplete parts, which the form does not contain
            file.close()


async def _images_of_form(form: FormData, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    parts = form.multi_items()
    if unknown := [name for name, part in parts if isinstance(part, str) and name != "url"]:
        field = unknown[0][:100]
        raise HTTPException(422, f"unknown form field {field!r}; send parameters in the query string of the URL")
    if not parts:
        raise HTTPException(400, "no image in the form; send files in fields `image`")
    if len(parts) > settings.max_images:
        raise HTTPException(413, f"more than {settings.max_images} images")
    remaining_bytes = settings.max_body_bytes
    found = []
    for _, part in parts:
        if isinstance(part, UploadFile):
            found.append((Path(part.filename or "image").name[:200], await part.read()))
        else:
            found.append((part[:200], await _download(part, settings, remaining_bytes)))
            remaining_bytes -= len(found[-1][1])
    return found


async def _download(url: str, settings: ServiceSettings, max_bytes: int) -> bytes:
    if not settings.allow_urls:
        raise HTTPException(400, "downloads from URLs are disabled; send the image itself")
    try:
        return await run_in_threadpool(fetch_bytes, url, False, max_bytes)
    except UserError as error:
        raise HTTPException(400, str(error)) from error


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine, and cancel it if the client disconnects.

    Args:
        request: Its body must have been read.
        work: The coroutine.

    Returns:
        Its result.

    Raises:
        HTTPException: 499 if the client disconnects.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the client has disconnected")
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
