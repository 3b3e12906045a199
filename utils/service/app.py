"""The HTTP interface: routes, limits, and what each refusal is called."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteError
from starlette.formparsers import MultiPartException

from utils.core.errors import UserError
from utils.core.version import VERSION
from utils.datasets.images import ImageFault, TooLargeFault, decode_image
from utils.datasets.web import fetch
from utils.service.answers import answer, flask_rows
from utils.service.batching import Batcher, FullError, StoppedError
from utils.service.measures import Measures
from utils.service.predictor import Predictor, Wish
from utils.service.settings import ServiceSettings

PAGE = Path(__file__).parent / "page" / "index.html"
PICTURES = ("image/", "application/octet-stream")
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "no image, or one that cannot be decoded"},
    401: {"description": "the header X-API-Key is missing or wrong"},
    404: {"description": "no such model"},
    413: {"description": "the body is too large, or holds too many images"},
    415: {"description": "neither an image nor multipart/form-data"},
    422: {"description": "a parameter is out of range, or an image has too many pixels"},
    503: {"description": "too many images wait, or the service is stopping; try again"},
    504: {"description": "the answer took too long"},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["image"],
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _TooLargeError(Exception):
    """More bytes came than may."""


class BodyLimit:
    """Refuse requests whose body is too large, while it is received."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        received, started = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _TooLargeError
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLargeError:
            if not started:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = f"the body is larger than {self.max_bytes / 2**20:g} MiB"
        response = JSONResponse({"detail": text}, 413, headers={"Connection": "close"})
        await response(scope, receive, send)


class Parameters(BaseModel):
    """The parameters of a prediction."""

    model: str = Field("", description="name from /v1/models; empty: the first", max_length=200)
    conf: float | None = Field(None, ge=0, le=1, description="least confidence of a box")
    iou: float | None = Field(None, ge=0, le=1, description="of boxes that overlap more, keep the best")
    max_det: int | None = Field(None, ge=1, le=3000, description="most boxes per image")
    classes: list[int] | None = Field(None, max_length=1000, description="keep only these classes")
    agnostic: bool = Field(False, description="boxes of different classes suppress each other")
    size: int | None = Field(None, ge=32, le=4096, description="longer side in the network")
    masks: Literal["polygon", "rle", "both", "none"] = Field("polygon", description="form of masks")
    pixels: bool = Field(True, description="return the map of classes of pixels as PNG")


class Service:
    """What the routes share: models, the queue, limits, measures."""

    def __init__(self, settings: ServiceSettings, predictor: Predictor) -> None:
        self.settings, self.predictor = settings, predictor
        self.measures = Measures()
        self.batcher = Batcher(
            predictor.work,
            settings.max_batch,
            settings.max_wait_ms / 1000,
            settings.max_queue,
            self.measures.batches.observe,
        )
        self.measures.waiting.set_function(lambda: len(self.batcher))
        self.ready = False

    def named(self, name: str) -> str:
        """Return the model that a request means; an unknown one is 404."""
        if name and name not in self.predictor.models:
            raise HTTPException(404, f"no model {name[:100]!r}; there are: {', '.join(self.predictor.models)}")
        return name or self.predictor.first

    async def images(self, request: Request) -> list[tuple[str, bytes]]:
        """Return name and bytes of the images in a request; without any it is 400."""
        kind = request.headers.get("content-type", "").lower()
        if kind.startswith("multipart/form-data"):
            return await self._parts(request)
        if not kind.startswith(PICTURES):
            raise HTTPException(415, "send image/... or multipart/form-data with fields `image`")
        body = await request.body()
        if not body:
            raise HTTPException(400, "the body is empty; send an image")
        return [("image", body)]

    async def _parts(self, request: Request) -> list[tuple[str, bytes]]:
        try:
            form = await request.form(max_files=self.settings.max_images, max_fields=100)
        except (MultiPartException, StarletteError) as error:
            text = str(getattr(error, "detail", None) or getattr(error, "message", error))
            raise HTTPException(413 if "Too many" in text else 400, text) from error
        found = []
        try:
            for name, part in form.multi_items():
                if isinstance(part, UploadFile):
                    found.append((Path(part.filename or "image").name[:200], await part.read()))
                elif name == "url":
                    found.append((part[:200], await self._fetched(part)))
        finally:
            await form.close()
        if not found:
            raise HTTPException(400, "no image in the form; send files in fields `image`")
        if len(found) > self.settings.max_images:
            raise HTTPException(413, f"more than {self.settings.max_images} images")
        return found

    async def _fetched(self, address: str) -> bytes:
        if not self.settings.allow_urls:
            raise HTTPException(400, "addresses are not fetched here; send the image itself")
        try:
            return await run_in_threadpool(fetch, address, False, self.settings.max_body_bytes)
        except UserError as error:
            raise HTTPException(400, str(error)) from error

    async def predict(self, name: str, images: list[tuple[str, bytes]], asked: Parameters) -> list[Any]:
        """Return the results of some images."""
        settings, predictor = self.settings, self.predictor
        size = asked.size or predictor.size_of(name)
        wishes = []
        for file, data in images:
            wishes.append(
                Wish(
                    await run_in_threadpool(self._decoded, file, data),
                    file,
                    settings.conf_thres if asked.conf is None else asked.conf,
                    settings.iou_thres if asked.iou is None else asked.iou,
                    asked.max_det or settings.max_det,
                    tuple(asked.classes) if asked.classes else None,
                    asked.agnostic,
                )
            )
        keys = [predictor.key(name, wish.bgr, size) for wish in wishes]
        try:
            found = await asyncio.wait_for(self.batcher.submit(wishes, keys), settings.timeout)
        except FullError as error:
            raise HTTPException(503, "too many images wait; try again", {"Retry-After": "1"}) from error
        except StoppedError as error:
            raise HTTPException(503, "the service is stopping", {"Retry-After": "5"}) from error
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {settings.timeout:g} s") from error
        self.measures.images.inc(len(found))
        return found

    def _decoded(self, file: str, data: bytes) -> Any:
        try:
            return decode_image(data, Path(file), max_pixels=self.settings.max_pixels)
        except TooLargeFault as fault:
            raise HTTPException(422, str(fault)) from fault
        except ImageFault as fault:
            raise HTTPException(400, str(fault)) from fault


def build_app(settings: ServiceSettings, predictor: Predictor | None = None) -> FastAPI:
    """Return the application; models are loaded here, so that a fault shows before the port is opened."""
    service = Service(settings, predictor or Predictor(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        service.ready = True
        yield
        service.ready = False
        await service.batcher.stop()

    app = FastAPI(title="Polyolo", version=VERSION, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.service = service
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.middleware("http")(service.measures.watch)
    _add_guard(app, settings.api_key)
    _add_routes(app, service)
    return app


def _add_guard(app: FastAPI, key: str) -> None:
    """Ask for the key, if there is one, wherever images are answered."""
    if not key:
        return

    async def guard(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("x-api-key", "")
        if request.url.path.startswith("/v1/") and not hmac.compare_digest(given.encode(), key.encode()):
            return JSONResponse({"detail": "the header X-API-Key is missing or wrong"}, 401)
        return await handle(request)

    app.middleware("http")(guard)


def _add_routes(app: FastAPI, service: Service) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src blob: mediastream:"
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/health", summary="Tell whether requests are answered", responses={503: REFUSALS[503]})
    async def health() -> JSONResponse:
        state = "ok" if service.ready else "stopping"
        return JSONResponse({"status": state, "waiting": len(service.batcher)}, 200 if service.ready else 503)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type=service.measures.media_type)

    @app.get("/v1/models", summary="List the models", responses={401: REFUSALS[401]})
    async def models() -> dict[str, Any]:
        return {"models": [_about(service.predictor, name) for name in service.predictor.models]}

    @app.post("/v1/predict", summary="Predict on one or several images", responses=REFUSALS, openapi_extra=_BODY)
    async def predict_images(request: Request, asked: Annotated[Parameters, Query()]) -> dict[str, Any]:
        name = service.named(asked.model)
        model = service.predictor.models[name]
        found = await service.predict(name, await service.images(request), asked)
        names = tuple(model.runner.names)
        specs = model.runner.specs
        return {"model": name, "images": [answer(one, specs, names, asked.masks, asked.pixels) for one in found]}

    @app.post(
        "/v1/object-detection/{model}",
        summary="Boxes of one image, as YOLOv5's REST API gave them",
        responses=REFUSALS,
        openapi_extra=_BODY,
    )
    async def flask_api(model: str, request: Request) -> list[dict[str, Any]]:
        name = service.named(model)
        found = await service.predict(name, (await service.images(request))[:1], Parameters.model_validate({}))
        if found[0].boxes is None:
            raise HTTPException(404, f"the model {name!r} finds no boxes")
        return flask_rows(found[0], tuple(service.predictor.models[name].runner.names))


def _about(predictor: Predictor, name: str) -> dict[str, Any]:
    model = predictor.models[name]
    heads = {
        head: {"classes": list(spec.names or model.runner.names), "masks": bool(spec.num_masks)}
        for head, spec in model.runner.specs.items()
    }
    return {"name": name, "heads": heads, "size": predictor.size_of(name), "stride": model.stride}
