"""The page to read first: the data that travels between parts, and what each kind of part promises.

Letters in shapes: B images in a batch, N boxes in the whole batch, n objects in one image, C classes, H and W pixels of
the network's input, L feature levels, A anchors per level. Boxes say their format: `cxcywh` and `xyxy` are pixels,
`cxcywhn` is divided by image width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # so that scripts can build their parsers without loading torch
    import numpy as np
    from torch import Tensor, device

    from utils.core.data_config import DataConfig
    from utils.core.hyp import Hyp

IGNORED_PIXEL = 255  # in semantic maps: no label here


# ----------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Geometry:
    """How one image was put into the network's input: resize by `scale_xy`, then shift by `pad_xy` pixels."""

    original_hw: tuple[int, int]
    network_hw: tuple[int, int]
    scale_xy: tuple[float, float] = (1.0, 1.0)
    pad_xy: tuple[float, float] = (0.0, 0.0)  # un-rounded halves of the border (behaviour.md 4.4)


@dataclass(frozen=True)
class ImageInfo:
    """Where an image of a batch came from. `index` is its place in the data set, the same on every rank."""

    index: int
    path: str
    geometry: Geometry


@dataclass
class Batch:
    """Images with their labels.

    A batch may hold images that carry some kinds of label and not others: `boxes_known` says for which images the
    absence of a box means background, and `IGNORED_PIXEL` marks pixels nobody labelled.
    """

    images: Tensor  # (B, 3, H, W) RGB; uint8 from the loader, float in [0, 1] on the device. Memory is channels-last
    boxes: (
        Tensor  # (N, 6) float: image index (rising), class, cx, cy, w, h, these four normalised to the network's input
    )
    info: list[ImageInfo]  # B of them
    boxes_known: Tensor | None = None  # (B,) bool; None: all images carry box labels
    masks: Tensor | None = (
        None  # of instances: (N, h, w) bool, or (B, h, w) integers that number an image's boxes from 1
    )
    classes: Tensor | None = None  # (B,) int64 class of each whole image, -1 = no label
    semantic: Tensor | None = None  # (B, H, W) uint8 class of each pixel, IGNORED_PIXEL: nobody labelled it. Has the
    # network's input size in training; for scoring the originals' size, which then all images of a batch share

    def __len__(self) -> int:
        return len(self.info)

    def num_labelled(self, labels: str) -> Tensor | int:
        """Return how many images carry labels of a kind: `boxes`, `classes` or `semantic`."""
        if labels == "boxes":
            return len(self) if self.boxes_known is None else self.boxes_known.sum()
        if labels == "classes":
            return 0 if self.classes is None else (self.classes >= 0).sum()
        return 0 if self.semantic is None else (self.semantic != IGNORED_PIXEL).flatten(1).any(1).sum()

    @property
    def instances(self) -> int:
        """Return how many things are labelled: boxes, and images with a class of their own."""
        return len(self.boxes) + (0 if self.classes is None else int((self.classes >= 0).sum()))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("images", "boxes", "boxes_known", "masks", "classes", "semantic")
        changed: dict[str, Any] = {n: change(t) for n in names if (t := getattr(self, n)) is not None}
        return replace(self, **changed)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the data loader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, target: device) -> Batch:
        """Return the batch on `target`; images stay uint8 so that a quarter of the bytes cross the bus."""
        return self._map(lambda tensor: tensor.to(target, non_blocking=True))


class FineMasks(Protocol):
    """Makes the masks of an image's n objects at larger sizes, few at a time: all at once may not fit into memory."""

    def __len__(self) -> int: ...

    def cpu(self) -> FineMasks: ...

    def network(self, rows: slice) -> Tensor:
        """Return (k, H, W) bool masks of some objects in the network's input."""
        ...

    def original(self, row: int) -> np.ndarray:
        """Return the (H, W) bool mask of one object in the original image."""
        ...


@dataclass
class Results:
    """Everything found in one image, in pixels of the original image. A field is None when no head produces it."""

    info: ImageInfo
    boxes: Tensor | None = None  # (n, 4) xyxy, clipped to the image, sorted by falling score
    scores: Tensor | None = None  # (n,)
    classes: Tensor | None = None  # (n,) int64
    masks: Tensor | None = None  # (n, h, w) bool over the network's input, borders and all, usually a quarter its size
    fine_masks: FineMasks | None = None  # the same n objects at the size of the network's input or of the original
    semantic: Tensor | None = None  # (H, W) uint8 class of each pixel
    probabilities: Tensor | None = None  # (C,) of the whole image
    candidates_cut: bool = False  # more candidates than the cap entered suppression

    def cpu(self) -> Results:
        """Return the same with every tensor on the CPU."""
        names = ("boxes", "scores", "classes", "masks", "fine_masks", "semantic", "probabilities")
        return replace(self, **{n: t.cpu() for n in names if (t := getattr(self, n)) is not None})


@dataclass(frozen=True)
class Frame:
    """One picture to predict on, and its place in the source it came from."""

    image: np.ndarray  # (H, W, 3) BGR uint8
    path: str  # the file, or the address of a stream without its password
    text: str  # what the console calls it: `image 1/2 path`
    number: int = 0  # in its video or stream, from 1; 0: a still image
    count: int = 0  # frames in the video; 0: a still image, or nobody knows
    fps: float = 30.0  # at which what is made of it should be played
    stream: int = 0  # which of several streams that run at the same time

    @property
    def is_video(self) -> bool:
        """Tell whether it is one of many frames of the same thing."""
        return self.number > 0


class FrameSource(Protocol):
    """Groups of frames that are predicted on together: one frame of a file, or the newest of several streams."""

    live: bool  # has no end of its own
    faults: int  # files that could not be read, so far

    def __iter__(self) -> Iterator[list[Frame]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HeadSpec:
    """What losses, post-processing and evaluators need to know of a head."""

    name: str  # the key in the network's output, and in the registries
    num_classes: int
    strides: tuple[int, ...] = ()  # per level, finest first
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()  # L x A x (w, h), in PIXELS of the network's input
    num_masks: int = 0  # mask coefficients per box
    names: tuple[str, ...] = ()  # of its classes: heads beside each other may know different ones
    fit: str = "letterbox"  # how images become its input: whole with a border, or `centre`, their middle square
    usual_px: int = 640  # size of the input where nobody says which


Raw = dict[str, "Tensor"]  # one head's output as the loss wants it
Decoded = dict[str, "Tensor"]  # the same in the user's units: pixels, probabilities


@dataclass
class Outputs:
    """What a runner returns for a batch: per head name, decoded tensors and, if the runner can, raw ones."""

    decoded: dict[str, Decoded]
    raw: dict[str, Raw] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# Parts


class Head(Protocol):
    """The end of a network. `forward` returns one type in training, evaluation and export; `decode` is apart."""

    name: str
    num_classes: int

    def __call__(self, features: list[Tensor]) -> Raw: ...

    def decode(self, raw: Raw) -> Decoded: ...

    @property
    def spec(self) -> HeadSpec: ...


class Loss(Protocol):
    """An `nn.Module` built as `LOSSES.get(head_name)(spec, hyp)`, called as `loss(raw, batch) -> {term: scalar}`.

    Terms carry their gains and are means over the *global* batch (all ranks): the same sum on one process and on many.
    Without labels a term is exactly zero and still reaches every parameter of the head. State that changes during
    training lives in buffers, so that it is saved and restored. `hyp` is already scaled (`Hyp.scaled`).
    """

    per_image: bool  # True: the engine multiplies the sum by the number of images with such labels (behaviour.md 3.7)
    labels: str  # what it learns from: boxes (masks among them), classes or semantic

    def __call__(self, raw: Raw, batch: Batch) -> dict[str, Tensor]: ...


class PostProcess(Protocol):
    """Built as `POSTPROCESS.get(head_name)(spec, settings)`; fills its fields of `results`, one per image."""

    def __call__(self, decoded: Decoded, results: list[Results]) -> None: ...


class Evaluator(Protocol):
    """Built as `EVALUATORS.get(head_name)(spec, settings)`. Collects on every rank, gathers in `compute`."""

    def update(self, results: list[Results], batch: Batch) -> None: ...

    def compute(self) -> Scores: ...


@dataclass
class Scores:
    """What an evaluator found. `numbers` have names without the head's: the engine puts `detect/` before them."""

    numbers: dict[str, float]
    columns: tuple[str, ...] = ()  # of `rows`, for the printed table
    rows: list[tuple[str, dict[str, float]]] = field(default_factory=list)  # ("all" first, then classes)
    per_class: dict[int, float] = field(default_factory=dict)  # the headline score of each class that has labels
    remark: str = ""  # printed below the table
    details: Any = None  # curves and matrices for the task's plots; a dataclass of the evaluator's module


@dataclass(frozen=True)
class EvalSettings:
    """What post-processing and evaluators are told. One object for all heads; each reads what it needs."""

    names: tuple[str, ...] = ()
    confidence: float = 0.001
    iou: float = 0.6
    max_detections: int = 300
    multi_label: bool = True  # several classes per box (behaviour.md 5.1 step 4)
    agnostic: bool = False
    single_class: bool = False  # every detection counts as class 0, whatever the network calls it
    classes: tuple[int, ...] | None = None  # keep only these
    max_candidates: int = 30000
    fine_masks: bool = False  # fill Results.fine_masks; evaluators then compare masks at the network's resolution
    native_masks: bool = False  # masks in the original image come straight from the network's own (behaviour.md 2.3)
    annotations: Path | None = None  # COCO JSON that belongs to the split
    save_json: Path | None = None  # where to write COCO-format predictions
    absent_as_zero: bool = False  # mean IoU counts classes that occur nowhere as 0, as multiyolov5 does


class Runner(Protocol):
    """Something that turns images into outputs: a network, an ensemble, an exported file."""

    specs: dict[str, HeadSpec]  # with the names of each head's classes
    names: tuple[str, ...]  # of the main head's classes
    stride: int
    fixed_hw: tuple[int, int] | None  # the only input size it takes, None: any multiple of the stride

    def run(self, images: Tensor) -> Outputs:
        """Take (B, 3, H, W) uint8 or float images."""
        ...


class StopTraining(Exception):  # noqa: N818 - a wish, not a fault
    """A logger given to `run(loggers=...)` raises it in `epoch`: the training ends as if patience had run out."""


class Logger(Protocol):
    """One destination. A logger that fails says so once and never stops the run.

    `start` comes first, `finish` last; it has no numbers and checkpoints when the run was interrupted, and a resumed
    run starts again in the same folder. `epoch` gets the columns of results.csv after every epoch (from 0), `image`
    the file of one that has been drawn. Those named in `--log` are called in a thread of their own, unless the class
    says `direct = True`.

    Two more methods are called where a logger has them: `batch(step, numbers)` after every batch of the training,
    counted from 1 over the run, with its loss terms (`train/detect/box`); this makes the loop wait for the device.
    `checkpoint(path, epoch, best)` when `last.pt`, a better `best.pt` or one of `--save-period` has been written.
    """

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None: ...

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None: ...

    def image(self, path: Path, epoch: int) -> None: ...

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None: ...


class Loader(Protocol):
    """Batches of one split. Every epoch and every position in it is reproducible (decisions.md, Determinism)."""

    heads: tuple[str, ...]  # the heads its labels are for; empty: all
    num_images: int
    num_batches: int  # on this rank
    class_counts: np.ndarray  # (C,) boxes or images per class
    shapes_hw: np.ndarray  # (num_images, 2) pixels of the originals

    @property
    def parts(self) -> Sequence[Loader]: ...  # scored one after the other, each for its own heads; mostly just itself

    @property
    def labels(self) -> list[np.ndarray]: ...  # per image (n, 5): class, cx, cy, w, h, normalised

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class SemanticRequest:
    """How images with a class per pixel are loaded and shared with others."""

    base_size: int = 0  # long side of whole images when scoring, and around which training draws sizes; 0: image_size
    mode: str = "whole"  # of scoring: whole (at base size), native (at the original's), crop (the centre)
    share: float = 0.5  # of a training batch, when boxes and pixels come from two data sets
    mosaic: bool = False  # boxes and pixels of one data set: the map rides along in the mosaic
    fixed_hw: tuple[int, int] | None = None  # scoring: the only size the network takes; images get a border


@dataclass(frozen=True)
class LoadRequest:
    """What a task's `load` is asked for."""

    data: DataConfig
    split: str  # train, val or test
    training: bool
    image_size: int
    batch_size: int  # on this rank
    stride: int
    hyp: Hyp
    workers: int = 8
    seed: int = 0
    rect: bool = False
    rect_group: int | None = None  # images that share a rectangular shape; None: batch_size
    pad: float = 0.0  # in strides, added to rectangular shapes
    cache: str | None = None  # ram or disk
    single_class: bool = False
    quad: bool = False
    allow_label_faults: bool = False  # go on when more than 1 % of the label files are faulty
    masks: bool = False  # make Batch.masks of polygons
    mask_ratio: int = 4  # pixels of the network's input per pixel of the masks, in each direction
    overlap: bool = True  # one map of numbers per image instead of a mask per object
    mosaic_window: int = 64  # partners of a mosaic come from this many neighbours in the epoch's order; 0: from all
    semantic: SemanticRequest = field(default_factory=lambda: SemanticRequest())


@dataclass(frozen=True)
class Task:
    """What one family of scripts trains: a record, not a class with a life of its own."""

    name: str
    heads: tuple[str, ...]  # the heads it needs
    headline: Mapping[str, float]  # weights of the numbers whose sum ranks epochs
    load: Callable[[LoadRequest], Loader]
    columns: Mapping[str, str]  # results.csv column -> name of the number
    draw_batch: Callable[[Batch, Path, DataConfig, Sequence[Results] | None], None]
    draw_labels: Callable[[Loader, Path, DataConfig], None]
    draw_scores: Callable[[Mapping[str, Scores], Path, DataConfig], Iterable[Path]]
    seldom: tuple[str, ...] = ()  # heads that are not scored in every epoch (`--seg-interval`)
    gains: Callable[[Hyp], Mapping[str, float]] = lambda hyp: {}  # by which losses of heads are multiplied; else 1
    data: str = "data/shapes.yaml"  # what is scored when neither the user nor the checkpoint says
    cfg: str = "yolov5n"  # the network that is trained when neither weights nor a model YAML are given
    fit_anchors: bool = False  # labels are boxes that anchors can be fitted to
