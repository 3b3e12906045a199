"""How requests come in: limits on bodies, images out of forms, and clients that leave."""

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

PICTURES = ("image/", "application/octet-stream")
GONE = 499  # nginx's number for a client that did not wait; nobody reads the answer, but it is counted

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")


class BodyLimit:
    """Refuse requests whose body is too large: announced ones unread, others while they are received."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        text = f"the body is larger than {self.max_bytes / 2**20:g} MiB"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:18]) > self.max_bytes:
            await JSONResponse({"detail": text}, 413)(scope, receive, send)  # what still comes the server throws away
            return
        received = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, text, {"Connection": "close"})
            return message

        await self.app(scope, counted, send)


class _InMemory(MultiPartParser):
    """Keeps files in memory, whose size BodyLimit bounds: nothing of a request is written to disk."""

    spool_max_size = 1 << 40


async def received(request: Request, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    """Return name and bytes of the images in a request; HTTPException 400, 413, 415 or 422 without any."""
    try:
        return await _sent(request, settings)
    except ClientDisconnect as error:
        raise HTTPException(GONE, "the client has gone") from error


async def _sent(request: Request, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    kind = request.headers.get("content-type", "").lower()
    if kind.startswith("multipart/form-data"):
        return await _from_form(request, settings)
    if not kind.startswith(PICTURES):
        raise HTTPException(415, "send image/... or multipart/form-data with fields `image`")
    body = await request.body()
    if not body:
        raise HTTPException(400, "the body is empty; send an image")
    return [("image", body)]


async def _from_form(request: Request, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    most = settings.max_images
    parser = _InMemory(request.headers, request.stream(), max_files=most, max_fields=most)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(413 if error.message.startswith("Too many") else 400, error.message) from error
    except (FormParserError, ValueError, LookupError) as error:  # among them odd character sets
        raise HTTPException(400, "the form cannot be read") from error
    try:
        return await _images_of(form, settings)
    finally:
        for file in parser._files_to_close_on_error:  # among them those of parts without an end, which no form holds
            file.close()


async def _images_of(form: FormData, settings: ServiceSettings) -> list[tuple[str, bytes]]:
    parts = form.multi_items()
    if odd := [name for name, part in parts if isinstance(part, str) and name != "url"]:
        raise HTTPException(422, f"the form's field {odd[0][:100]!r} is no file; parameters belong into the address")
    if not parts:
        raise HTTPException(400, "no image in the form; send files in fields `image`")
    if len(parts) > settings.max_images:
        raise HTTPException(413, f"more than {settings.max_images} images")
    left = settings.max_body_bytes
    found = []
    for _, part in parts:
        if isinstance(part, UploadFile):
            found.append((Path(part.filename or "image").name[:200], await part.read()))
        else:
            found.append((part[:200], await _fetched(part, settings, left)))
            left -= len(found[-1][1])
    return found


async def _fetched(address: str, settings: ServiceSettings, max_bytes: int) -> bytes:
    if not settings.allow_urls:
        raise HTTPException(400, "addresses are not fetched here; send the image itself")
    try:
        return await run_in_threadpool(fetch_bytes, address, False, max_bytes)
    except UserError as error:
        raise HTTPException(400, str(error)) from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; give it up when the client leaves. The request's body must have been read."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(GONE, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
