"""The HTTP interface: routes, limits, and what each refusal is called."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader

from tools.service.batching import Batcher, FullError, StoppedError, WorkError
from tools.service.predictor import Predictor
from tools.service.prometheus_metrics import Measures, Watch
from tools.service.requests import BodyLimit, received, unless_gone
from tools.service.responses import Form, answer, flask_rows
from tools.service.schema import (
    BODY,
    PREDICTION,
    Answer,
    FlaskRow,
    Health,
    Models,
    NoParameters,
    Parameters,
    refusals,
)
from tools.service.service_settings import ServiceSettings
from utils.core.device import usable_cpus
from utils.core.log import LOGGER
from utils.core.version import VERSION
from utils.datasets.image_files import ImageFault, TooLargeFault, decode_image

PAGES = Path(__file__).parent / "page"
POLICY = (  # the pages load nothing from elsewhere, and nobody may frame them
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src blob: mediastream:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
T = TypeVar("T")


class Service:
    """What the routes share: models, the queue, limits, measures."""

    def __init__(self, settings: ServiceSettings, predictor: Predictor) -> None:
        self.settings, self.predictor = settings, predictor
        self.measures = Measures()
        self.batcher = Batcher(
            predictor.work,
            predictor.most,
            settings.max_wait_ms / 1000,
            settings.max_queue,
            self.measures.batches.observe,
        )
        self.measures.waiting.set_function(lambda: len(self.batcher))
        # as many images are decoded at a time as there are cores: that bounds the memory of large ones
        self._crew = ThreadPoolExecutor(max(2, min(8, usable_cpus())), "images")
        self.running = False

    async def start(self) -> None:
        """Begin to answer."""
        self.batcher.start()
        self.running = True

    async def stop(self) -> None:
        """Finish what is in work."""
        self.running = False
        await self.batcher.stop()
        self._crew.shutdown()

    def named(self, name: str) -> str:
        """Return the model that a request means; an unknown one is 404."""
        if name and name not in self.predictor.models:
            raise HTTPException(404, f"no model {name[:100]!r}; there are: {', '.join(self.predictor.models)}")
        return name or self.predictor.first

    async def answered(
        self, request: Request, name: str, asked: Parameters, told: Callable[[list[Any], Form], Any]
    ) -> Response:
        """Return the JSON that `told` makes of the results of a request's images."""
        settings = self.settings
        size = self._size(name, asked.size)
        late = HTTPException(408, f"the request did not arrive within {settings.timeout:g} s", {"Connection": "close"})
        try:
            with self.batcher.places(1):  # before anything is read
                files = await _within(settings.timeout, received(request, settings), late)
                with self.batcher.places(len(files) - 1):
                    until = time.monotonic() + settings.timeout
                    work = self._predicted(name, size, files, asked, _Telling(told, until))
                    late = HTTPException(504, f"no answer within {settings.timeout:g} s")
                    return await unless_gone(request, _within(settings.timeout, work, late))
        except FullError as error:
            raise HTTPException(503, "too many images are in work; try again", {"Retry-After": "1"}) from error
        except StoppedError as error:
            raise HTTPException(503, "the service is stopping", {"Retry-After": "5"}) from error
        except WorkError as error:
            LOGGER.error(f"{name}: the network failed", exc_info=error.__cause__)
            raise HTTPException(500, "the network failed on this; the service's log says how") from error

    def _size(self, name: str, asked: int | None) -> int:
        """Return the size for the network; one that cannot be is 422."""
        fixed = self.predictor.models[name].runner.fixed_hw
        if asked is None:
            return self.predictor.size_of(name)
        if fixed is not None and asked != max(fixed):
            raise HTTPException(422, f"size: {name} takes images at {fixed[0]} x {fixed[1]} only")
        if asked > self.settings.max_imgsz:
            raise HTTPException(422, f"size: at most {self.settings.max_imgsz} here")
        return asked

    async def _predicted(
        self, name: str, size: int, files: list[tuple[str, bytes]], asked: Parameters, telling: "_Telling"
    ) -> Response:
        settings, runner = self.settings, self.predictor.models[name].runner
        how = self.predictor.how(
            name,
            confidence=settings.conf_thres if asked.conf is None else asked.conf,
            iou=settings.iou_thres if asked.iou is None else asked.iou,
            max_detections=asked.max_det or settings.max_det,
            classes=tuple(asked.classes) if asked.classes else None,
            agnostic=asked.agnostic,
        )
        loop = asyncio.get_running_loop()

        def ready(file: tuple[str, bytes]) -> Any:
            return self.predictor.ready(name, (file[0], self._decoded(*file)), size, how)

        prepared = await asyncio.gather(*(loop.run_in_executor(self._crew, ready, file) for file in files))
        found = await self.batcher.submit([wish for _, wish in prepared], [key for key, _ in prepared])
        self.measures.images.inc(len(found))
        form = Form(runner.specs, tuple(runner.names), asked.masks, asked.pixels, telling.until)
        return await loop.run_in_executor(self._crew, telling.response, found, form)

    def _decoded(self, file: str, data: bytes) -> Any:
        try:
            return decode_image(data, Path(file), max_pixels=self.settings.max_pixels)
        except TooLargeFault as fault:
            raise HTTPException(422, str(fault)) from fault
        except ImageFault as fault:
            raise HTTPException(400, str(fault)) from fault


class _Telling:
    """From results to a response, in a thread: outlines and PNG take time, and so does much JSON."""

    def __init__(self, told: Callable[[list[Any], Form], Any], until: float) -> None:
        self.told, self.until = told, until

    def response(self, found: list[Any], form: Form) -> Response:
        text = json.dumps(self.told(found, form), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Response(text.encode("utf-8", "replace"), media_type="application/json")


async def _within(seconds: float, work: Coroutine[Any, Any, T], late: HTTPException) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise late from error


def build_app(settings: ServiceSettings, predictor: Predictor | None = None) -> FastAPI:
    """Return the application; models are loaded here, so that a fault shows before the port is opened."""
    service = Service(settings, predictor or Predictor(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="Polyolo", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Watch, measures=service.measures)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.add_exception_handler(Exception, _say_fault)
    _add_pages(app)
    _add_state(app, service)
    app.include_router(_versioned(service))
    return app


async def _refuse_parameters(_: Request, error: Exception) -> JSONResponse:
    """Say in one line what is wrong with the parameters."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(str(part) for part in one['loc'][1:])[:100]}: {one['msg']}" for one in error.errors()[:5]]
    return JSONResponse({"detail": "; ".join(faults)}, 422)


async def _say_fault(_: Request, error: Exception) -> JSONResponse:
    """Answer what nobody foresaw; the server writes the error to its log."""
    return JSONResponse({"detail": f"the service failed ({type(error).__name__}); its log says how"}, 500)


def _guards(key: str) -> list[Any]:
    """Return what asks for the key, if there is one, before anything else is looked at."""
    if not key:
        return []

    async def guard(given: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> None:
        if not hmac.compare_digest((given or "").encode(), key.encode()):
            raise HTTPException(401, "the header X-API-Key is missing or wrong", {"WWW-Authenticate": "X-API-Key"})

    return [Depends(guard)]


def _add_pages(app: FastAPI) -> None:
    """Add what people open in a browser."""
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    def add(path: str, file: str) -> None:
        text = (PAGES / file).read_text(encoding="utf-8")

        @app.api_route(path, methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
        async def page() -> HTMLResponse:
            return HTMLResponse(text, headers=headers)

    add("/", "index.html")
    add("/docs", "docs.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def _add_state(app: FastAPI, service: Service) -> None:
    """Add what supervisors ask for."""

    @app.head("/health", include_in_schema=False)
    @app.get(
        "/health",
        summary="Tell whether requests are answered",
        response_model=Health,
        responses={503: {"description": "the service is stopping", "model": Health}},
    )
    async def health() -> JSONResponse:
        state = {"status": "ok" if service.running else "stopping", "waiting": len(service.batcher)}
        return JSONResponse(state, 200 if service.running else 503)

    text = {"text/plain": {"schema": {"type": "string"}}}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "Counters, as text", "content": text}}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response, responses=responses)
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type=service.measures.media_type)


def _versioned(service: Service) -> APIRouter:
    """Return the routes that answer about models and images."""
    router = APIRouter(prefix="/v1", dependencies=_guards(service.settings.api_key))

    @router.get("/models", summary="List the models", response_model=Models, responses=refusals(401))
    async def models() -> dict[str, Any]:
        settings, about = service.settings, [_about(service.predictor, name) for name in service.predictor.models]
        return {"models": about, "conf": settings.conf_thres, "iou": settings.iou_thres}

    @router.post(
        "/predict",
        summary="Predict on one or several images",
        response_model=Answer,
        responses=refusals(*PREDICTION),
        openapi_extra=BODY,
    )
    async def predict_images(request: Request, asked: Annotated[Parameters, Query()]) -> Response:
        name = service.named(asked.model)

        def told(found: list[Any], form: Form) -> dict[str, Any]:
            return {"model": name, "images": [answer(one, form) for one in found]}

        return await service.answered(request, name, asked, told)

    @router.post(
        "/object-detection/{model}",
        summary="Boxes of one image, as YOLOv5's REST API gave them",
        response_model=list[FlaskRow],
        responses=refusals(*PREDICTION),
        openapi_extra=BODY,
    )
    async def flask_api(model: str, request: Request, _: Annotated[NoParameters, Query()]) -> Response:
        name = service.named(model)
        if not any(spec.strides for spec in service.predictor.models[name].runner.specs.values()):
            raise HTTPException(404, f"the model {name!r} finds no boxes")

        def told(found: list[Any], form: Form) -> list[dict[str, Any]]:
            return flask_rows(found[0], form)

        return await service.answered(request, name, Parameters.model_validate({"masks": "none"}), told)

    return router


def _about(predictor: Predictor, name: str) -> dict[str, Any]:
    model = predictor.models[name]
    heads = {
        head: {"classes": list(spec.names or model.runner.names), "masks": bool(spec.num_masks)}
        for head, spec in model.runner.specs.items()
    }
    return {"name": name, "heads": heads, "size": predictor.size_of(name), "stride": model.stride}
