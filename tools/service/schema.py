"""Parameters and JSON values of the HTTP interface, for validation and for OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from utils.core.train_settings import MAX_IMAGE_PX

MaskFormat = Literal["polygon", "rle", "both", "none"]


class Parameters(BaseModel):
    """Query parameters of a prediction; unknown ones are rejected."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="name from /v1/models; empty: the first model", max_length=200)
    conf: float | None = Field(None, ge=0, le=1, description="confidence threshold")
    iou: float | None = Field(None, ge=0, le=1, description="IoU threshold of NMS")
    max_det: int | None = Field(None, ge=1, le=3000, description="maximum number of detections per image")
    classes: list[Annotated[int, Field(ge=0, le=65535)]] | None = Field(
        None, max_length=1000, description="class indices to detect"
    )
    agnostic: bool = Field(False, description="apply NMS across classes")
    size: int | None = Field(
        None, ge=32, le=MAX_IMAGE_PX, description="longer side of the network input, limited by --max-imgsz"
    )
    masks: MaskFormat = Field("polygon", description="format of instance masks")
    pixels: bool = Field(True, description="include the semantic map as PNG")
    panoptic: bool = Field(False, description="include the panoptic map of models with masks and semantic maps")


class NoParameters(BaseModel):
    """Rejection of all query parameters."""

    model_config = ConfigDict(extra="forbid")


class Rle(BaseModel):
    """Mask in COCO's compressed run-length encoding."""

    size: list[int] = Field(description="height and width")
    counts: str


class Detection(BaseModel):
    """Detected object."""

    class_: int = Field(alias="class")
    name: str
    confidence: float
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the image", min_length=4, max_length=4)
    color: str = Field(description="colour of the class as #rrggbb")
    polygon: list[list[int]] | None = Field(None, description="largest contour of the mask, [x, y] in pixels")
    rle: Rle | None = None


class SemanticClass(BaseModel):
    """Class of a semantic map."""

    class_: int = Field(alias="class")
    name: str
    share: float = Field(description="fraction of the labelled pixels, 0 to 1")
    color: str


class SemanticMap(BaseModel):
    """Result of semantic segmentation."""

    classes: list[SemanticClass] = Field(description="classes in the image, the largest first")
    png: str | None = Field(None, description="base64 of a grey PNG of class indices, 255 for unlabelled")


class PanopticSegment(BaseModel):
    """Segment of a panoptic map."""

    id: int = Field(description="value of its pixels")
    class_: int = Field(alias="class", description="semantic class")
    name: str
    thing: bool = Field(description="an instance, with a confidence; otherwise stuff")
    area: int = Field(description="in pixels")
    color: str
    confidence: float | None = None


class PanopticResult(BaseModel):
    """Result of panoptic segmentation."""

    segments: list[PanopticSegment]
    png: str = Field(description="base64 of a colour PNG of segment ids, R + 256 G + 65536 B; 0 for void")


class ClassProbability(BaseModel):
    """Class of a whole image."""

    class_: int = Field(alias="class")
    name: str
    confidence: float


class ImageResult(BaseModel):
    """Predictions for one image; fields are present if the model has a head for them."""

    name: str = Field(description="file name as it was sent, else `image`")
    width: int
    height: int
    detections: list[Detection] | None = None
    semantic: SemanticMap | None = None
    panoptic: PanopticResult | None = None
    top5: list[ClassProbability] | None = None


class PredictionResponse(BaseModel):
    """Predictions, one entry per image in the order they were sent."""

    model: str
    images: list[ImageResult]


class FlaskRow(BaseModel):
    """Box as in YOLOv5's Flask REST API example."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    confidence: float
    class_: int = Field(alias="class")
    name: str


class HeadInfo(BaseModel):
    """Head of a model."""

    classes: list[str]
    masks: bool


class ModelInfo(BaseModel):
    """Served model."""

    name: str
    heads: dict[str, HeadInfo]
    size: int = Field(description="default longer side of the network input")
    stride: int


class ModelList(BaseModel):
    """Served models; the first is the default."""

    models: list[ModelInfo]
    conf: float = Field(description="default confidence threshold")
    iou: float = Field(description="default IoU threshold of NMS")


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok", "stopping"]
    waiting: int = Field(description="images in the queue")


class ErrorResponse(BaseModel):
    """Reason why a request failed."""

    detail: str


ERROR_DESCRIPTIONS = {
    400: "no image, or a damaged image or form, or a URL that is not allowed or cannot be downloaded",
    401: "the header X-API-Key is missing or wrong",
    404: "unknown model, or a model without boxes where boxes are required",
    408: "the request was not received in time",
    413: "the body is too large or has too many images",
    415: "the content type is neither image/... nor multipart/form-data",
    422: "a parameter is unknown or out of range, or an image has too many pixels",
    500: "inference failed; see the log of the service",
    503: "too many images are in progress, or the service is stopping; try again later",
    504: "the prediction was not completed in time",
}
PREDICTION_ERRORS = (400, 401, 404, 408, 413, 415, 422, 500, 503, 504)


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe error responses for OpenAPI."""
    return {code: {"description": ERROR_DESCRIPTIONS[code], "model": ErrorResponse} for code in codes}


REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "url": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "URLs of images, if the service allows downloads",
                        },
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
