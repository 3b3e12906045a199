"""What goes into the service and comes out of it: parameters, answers and refusals, for checks and for OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from utils.core.train_settings import MAX_IMAGE_PX


class Parameters(BaseModel):
    """The parameters of a prediction; others are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="name from /v1/models; empty: the first", max_length=200)
    conf: float | None = Field(None, ge=0, le=1, description="least confidence of a box")
    iou: float | None = Field(None, ge=0, le=1, description="of boxes that overlap more, keep the best")
    max_det: int | None = Field(None, ge=1, le=3000, description="most boxes per image")
    classes: list[Annotated[int, Field(ge=0, le=65535)]] | None = Field(
        None, max_length=1000, description="keep only boxes of these classes"
    )
    agnostic: bool = Field(False, description="boxes of different classes suppress each other")
    size: int | None = Field(
        None, ge=32, le=MAX_IMAGE_PX, description="longer side in the network, at most --max-imgsz of the service"
    )
    masks: Literal["polygon", "rle", "both", "none"] = Field("polygon", description="form of objects' masks")
    pixels: bool = Field(True, description="return the map of classes of pixels as PNG")


class NoParameters(BaseModel):
    """Refuses all parameters."""

    model_config = ConfigDict(extra="forbid")


class RunLengths(BaseModel):
    """A mask in COCO's compressed run lengths."""

    size: list[int] = Field(description="height and width")
    counts: str


class Detection(BaseModel):
    """One object."""

    class_: int = Field(alias="class")
    name: str
    confidence: float
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the image", min_length=4, max_length=4)
    color: str = Field(description="the one of its class, as #rrggbb")
    polygon: list[list[int]] | None = Field(None, description="its largest outline, [x, y] in pixels of the image")
    rle: RunLengths | None = None


class PixelClass(BaseModel):
    """One class of pixels that occurs in an image."""

    class_: int = Field(alias="class")
    name: str
    share: float = Field(description="of the image, 0 to 1")
    color: str


class PixelClasses(BaseModel):
    """The classes of all pixels."""

    classes: list[PixelClass] = Field(description="those that occur, the largest first")
    png: str | None = Field(None, description="base64 of a grey PNG of the image's size: class numbers, 255 for none")


class WholeClass(BaseModel):
    """A class of the whole image."""

    class_: int = Field(alias="class")
    name: str
    confidence: float


class ImageAnswer(BaseModel):
    """What was found in one image; a part is there when the model has a head for it."""

    name: str = Field(description="of the file as it was sent, else `image`")
    width: int
    height: int
    detections: list[Detection] | None = None
    semantic: PixelClasses | None = None
    top5: list[WholeClass] | None = None


class Answer(BaseModel):
    """What was found, an entry per image in the order they were sent."""

    model: str
    images: list[ImageAnswer]


class FlaskRow(BaseModel):
    """A box as YOLOv5's REST API gives it."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    confidence: float
    class_: int = Field(alias="class")
    name: str


class HeadAbout(BaseModel):
    """What one head of a model finds."""

    classes: list[str]
    masks: bool


class ModelAbout(BaseModel):
    """A model that is served."""

    name: str
    heads: dict[str, HeadAbout]
    size: int = Field(description="longer side in the network, unless a request says otherwise")
    stride: int


class Models(BaseModel):
    """The models; the first answers when none is named."""

    models: list[ModelAbout]
    conf: float = Field(description="least confidence of a box unless a request says otherwise")
    iou: float = Field(description="of boxes that overlap more the best is kept, likewise")


class Health(BaseModel):
    """Whether requests are answered."""

    status: Literal["ok", "stopping"]
    waiting: int = Field(description="images that wait for the network")


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of some refusals for OpenAPI."""
    return {code: {"description": _REASONS[code], "model": Refusal} for code in codes}


_REASONS = {
    400: "no image, or one that cannot be decoded; a broken form; an address that is not or cannot be fetched",
    401: "the header X-API-Key is missing or wrong",
    404: "no such model, or it finds no boxes where boxes were asked for",
    408: "the request took too long to arrive",
    413: "the body is too large, or holds too many images",
    415: "neither an image nor multipart/form-data",
    422: "a parameter is unknown or out of range, or an image has too many pixels",
    500: "the network failed; the service's log says how",
    503: "too many images are in work, or the service is stopping; try again later",
    504: "the answer took too long",
}
PREDICTION = (400, 401, 404, 408, 413, 415, 422, 500, 503, 504)
BODY = {
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
                            "description": "addresses of images, where the service allows them",
                        },
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
