"""HTTP interface of the service: routes, limits and error responses."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader

from tools.service.allocator import release_free_memory
from tools.service.batching import Batcher, InferenceError, QueueFullError, ShuttingDownError
from tools.service.predictor import Predictor
from tools.service.prometheus_metrics import MetricsMiddleware, ServiceMetrics
from tools.service.requests import BodyLimitMiddleware, cancel_on_disconnect, read_images
from tools.service.responses import ResponseFormat, encode_flask_rows, encode_result
from tools.service.schema import (
    PREDICTION_ERRORS,
    REQUEST_BODY,
    FlaskRow,
    Health,
    ModelList,
    NoParameters,
    Parameters,
    PredictionResponse,
    error_responses,
)
from tools.service.service_settings import ServiceSettings
from tools.service.truncated_images import jpeg_lacks_end
from utils.core.contracts import Results
from utils.core.device import usable_cpus
from utils.core.errors import did_you_mean
from utils.core.log import LOGGER
from utils.core.version import VERSION
from utils.datasets.image_files import ImageFault, TooLargeFault, decode_image

PAGES = Path(__file__).parent / "page"
CONTENT_SECURITY_POLICY = (  # the pages load nothing from other hosts and cannot be framed
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src blob: mediastream:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
T = TypeVar("T")
Encode = Callable[[Sequence[Results], ResponseFormat], Any]  # results of a request -> JSON values


class Service:
    """State that the routes share: models, queue, limits and metrics."""

    def __init__(self, settings: ServiceSettings, predictor: Predictor) -> None:
        self.settings, self.predictor = settings, predictor
        self.metrics = ServiceMetrics()
        self.batcher = Batcher(
            predictor.process_batch,
            predictor.max_batch_size,
            settings.max_wait_ms / 1000,
            settings.max_queue,
            self.metrics.batches.observe,
            release_free_memory,
        )
        self.metrics.waiting.set_function(lambda: len(self.batcher))
        # the number of threads limits how many images are decoded at the same time, which bounds memory
        self._threads = ThreadPoolExecutor(max(2, min(8, usable_cpus())), "images")
        self.running = False

    async def start(self) -> None:
        """Start to process requests."""
        self.batcher.start()
        self.running = True

    async def stop(self) -> None:
        """Complete the requests in progress and stop."""
        self.running = False
        await self.batcher.stop()
        self._threads.shutdown()

    def resolve_model(self, name: str) -> str:
        """Check the model name of a request; empty: the default model. Unknown names raise HTTPException 404."""
        if name and name not in self.predictor.models:
            hint = did_you_mean(name, self.predictor.models) or "; GET /v1/models lists the models"
            raise HTTPException(404, f"unknown model {name[:100]!r}{hint}")
        return name or self.predictor.default_model

    async def respond(self, request: Request, name: str, parameters: Parameters, encode: Encode) -> Response:
        """Predict on the images of a request.

        Args:
            request: Its body has the images.
            name: Of the model.
            parameters: Of the request.
            encode: Converts the results to JSON values.

        Returns:
            The JSON response.

        Raises:
            HTTPException: See `schema.ERROR_DESCRIPTIONS`.
        """
        timeout = self.settings.timeout
        size = self._input_size(name, parameters.size)
        not_received = HTTPException(408, f"the request was not received within {timeout:g} s", {"Connection": "close"})
        not_completed = HTTPException(504, f"the prediction was not completed within {timeout:g} s")
        try:
            with self.batcher.reserve(1):  # refuses the request before its body is read
                pass
            # slow clients hold no slot while they send; BodyLimitMiddleware bounds the memory of their bodies
            with self.batcher.reserve(int(self.settings.allow_urls)):  # downloads are not part of the bodies
                files = await _with_timeout(timeout, read_images(request, self.settings), not_received)
            with self.batcher.reserve(len(files)):
                work = self._predict(name, size, files, parameters, encode)
                return await cancel_on_disconnect(request, _with_timeout(timeout, work, not_completed))
        except QueueFullError as error:
            raise HTTPException(
                503, "too many images are in progress; try again later", {"Retry-After": "1"}
            ) from error
        except ShuttingDownError as error:
            raise HTTPException(503, "the service is stopping; try again later", {"Retry-After": "5"}) from error
        except InferenceError as error:
            LOGGER.error(f"{name}: inference failed", exc_info=error.__cause__)
            raise HTTPException(500, "inference failed; see the log of the service") from error

    def _input_size(self, name: str, size: int | None) -> int:
        """Choose the size of the network input; unsupported sizes raise HTTPException 422."""
        fixed_hw = self.predictor.models[name].runner.fixed_hw
        if size is None:
            return self.predictor.default_size(name)
        if fixed_hw is not None and size != max(fixed_hw):
            raise HTTPException(422, f"size: {name} supports {fixed_hw[0]} x {fixed_hw[1]} only, got {size}")
        if size > self.settings.max_imgsz:
            raise HTTPException(422, f"size: the maximum is {self.settings.max_imgsz}, got {size}")
        return size

    async def _predict(
        self, name: str, size: int, files: list[tuple[str, bytes]], parameters: Parameters, encode: Encode
    ) -> Response:
        deadline = time.monotonic() + self.settings.timeout
        runner = self.predictor.models[name].runner
        settings = self.predictor.eval_settings(name, parameters)
        loop = asyncio.get_running_loop()

        def prepare(file: tuple[str, bytes]) -> Any:
            return self.predictor.prepare(name, (file[0], self._decode(*file)), size, settings)

        prepared = await asyncio.gather(*(loop.run_in_executor(self._threads, prepare, file) for file in files))
        results = await self.batcher.submit([image for _, image in prepared], [key for key, _ in prepared])
        self.metrics.images.inc(len(results))
        form = ResponseFormat(
            specs=runner.specs,
            names=tuple(runner.names),
            masks=parameters.masks,
            pixels=parameters.pixels,
            panoptic=parameters.panoptic,
            deadline=deadline,
        )
        return await loop.run_in_executor(self._threads, _json_response, encode, results, form)

    def _decode(self, name: str, data: bytes) -> np.ndarray:
        if jpeg_lacks_end(data):
            raise HTTPException(400, f"{name}: truncated JPEG (no end marker); send the whole file")
        try:
            return decode_image(data, Path(name), max_pixels=self.settings.max_pixels)
        except TooLargeFault as fault:
            raise HTTPException(422, str(fault)) from fault
        except ImageFault as fault:
            raise HTTPException(400, str(fault)) from fault


def _json_response(encode: Encode, results: Sequence[Results], form: ResponseFormat) -> Response:
    """Create a response; called in a thread because polygons, PNG and large JSON take time."""
    text = json.dumps(encode(results, form), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), media_type="application/json")


async def _with_timeout(seconds: float, work: Coroutine[Any, Any, T], error: HTTPException) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except (asyncio.TimeoutError, TimeoutError) as timeout:
        raise error from timeout


def build_app(settings: ServiceSettings, predictor: Predictor | None = None) -> FastAPI:
    """Create the application.

    Args:
        settings: Options of serve.py.
        predictor: The models; None: they are loaded here, so that errors occur before the port is opened.

    Returns:
        The application.
    """
    service = Service(settings, predictor or Predictor(settings))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="Polyolo", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(
        BodyLimitMiddleware,
        max_bytes=settings.max_body_bytes,
        max_total_bytes=settings.max_queue * settings.max_body_bytes,
    )
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    app.add_exception_handler(Exception, _internal_error)
    _add_pages(app)
    _add_monitoring(app, service)
    app.include_router(_create_api(service))
    return app


async def _invalid_parameters(_: Request, error: Exception) -> JSONResponse:
    """Respond with one line about invalid parameters."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(str(part) for part in one['loc'][1:])[:100]}: {one['msg']}" for one in error.errors()[:5]]
    return JSONResponse({"detail": "; ".join(faults)}, 422)


async def _internal_error(_: Request, error: Exception) -> JSONResponse:
    """Respond to unexpected exceptions; the server logs them."""
    return JSONResponse({"detail": f"internal error ({type(error).__name__}); see the log of the service"}, 500)


def _api_key_dependencies(key: str) -> list[Any]:
    """Create the dependency that checks the API key before anything else; none without a key."""
    if not key:
        return []

    async def check(given: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> None:
        if not hmac.compare_digest((given or "").encode(), key.encode()):
            raise HTTPException(401, "the header X-API-Key is missing or wrong", {"WWW-Authenticate": "X-API-Key"})

    return [Depends(check)]


def _add_pages(app: FastAPI) -> None:
    """Add the pages for browsers."""
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

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


def _add_monitoring(app: FastAPI, service: Service) -> None:
    """Add the routes for supervisors: health and metrics."""

    @app.head("/health", include_in_schema=False)
    @app.get(
        "/health",
        summary="State of the service",
        response_model=Health,
        responses={503: {"description": "the service is stopping", "model": Health}},
    )
    async def health() -> JSONResponse:
        state = {"status": "ok" if service.running else "stopping", "waiting": len(service.batcher)}
        return JSONResponse(state, 200 if service.running else 503)

    text = {"text/plain": {"schema": {"type": "string"}}}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "metrics as text", "content": text}}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=responses)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.media_type)


def _create_api(service: Service) -> APIRouter:
    """Create the versioned routes for models and predictions."""
    router = APIRouter(prefix="/v1", dependencies=_api_key_dependencies(service.settings.api_key))

    @router.get("/models", summary="List of models", response_model=ModelList, responses=error_responses(401))
    async def models() -> dict[str, Any]:
        settings, predictor = service.settings, service.predictor
        described = [_describe_model(predictor, name) for name in predictor.models]
        return {"models": described, "conf": settings.conf_thres, "iou": settings.iou_thres}

    @router.post(
        "/predict",
        summary="Predict on one or several images",
        response_model=PredictionResponse,
        responses=error_responses(*PREDICTION_ERRORS),
        openapi_extra=REQUEST_BODY,
    )
    async def predict_images(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
        name = service.resolve_model(parameters.model)

        def encode(results: Sequence[Results], form: ResponseFormat) -> dict[str, Any]:
            return {"model": name, "images": [encode_result(one, form) for one in results]}

        return await service.respond(request, name, parameters, encode)

    @router.post(
        "/object-detection/{model}",
        summary="Boxes of one image in the format of YOLOv5's Flask REST API",
        response_model=list[FlaskRow],
        responses=error_responses(*PREDICTION_ERRORS),
        openapi_extra=REQUEST_BODY,
    )
    async def flask_api(model: str, request: Request, _: Annotated[NoParameters, Query()]) -> Response:
        name = service.resolve_model(model)
        if not any(spec.strides for spec in service.predictor.models[name].runner.specs.values()):
            raise HTTPException(404, f"the model {name!r} has no box head")

        def encode(results: Sequence[Results], form: ResponseFormat) -> list[dict[str, Any]]:
            return encode_flask_rows(results[0], form)

        return await service.respond(request, name, Parameters.model_validate({"masks": "none"}), encode)

    return router


def _describe_model(predictor: Predictor, name: str) -> dict[str, Any]:
    model = predictor.models[name]
    heads = {
        head: {"classes": list(spec.names or model.runner.names), "masks": bool(spec.num_masks)}
        for head, spec in model.runner.specs.items()
    }
    return {"name": name, "heads": heads, "size": predictor.default_size(name), "stride": model.stride}
