"""Data structures and protocols shared by all packages; the page to read first.

Shapes use these letters: B images in a batch, N boxes in a batch, n objects in one image, C classes, H and W height and
width of the network input in pixels, L feature levels, A anchors per level. Box formats: `cxcywh` and `xyxy` are in
pixels, `cxcywhn` is normalised by image width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # keeps --help fast: parsers are built without loading torch
    import numpy as np
    from torch import Tensor, device
    from typing_extensions import Self

    from utils.core.data_config import DataConfig
    from utils.core.hyp import Hyp
    from utils.core.load_request import LoadRequest
    from utils.core.segment_types import FineMasks, MergeSettings, PanopticLabels, PanopticMap

IGNORED_PIXEL = 255  # value of unlabelled pixels in semantic maps


# ----------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Geometry:
    """Letterbox transform of one image: resize by `scale_xy`, then pad by `pad_xy`."""

    original_hw: tuple[int, int]
    network_hw: tuple[int, int]
    scale_xy: tuple[float, float] = (1.0, 1.0)
    pad_xy: tuple[float, float] = (0.0, 0.0)  # left and top padding in pixels, not rounded


@dataclass(frozen=True)
class ImageInfo:
    """Identity of an image in a batch: index in the data set (the same on every rank), file and transform."""

    index: int
    path: str
    geometry: Geometry


@dataclass
class Batch:
    """Images and their labels.

    Images of one batch may carry different kinds of labels: `boxes_known` marks the images whose missing boxes mean
    background, and `IGNORED_PIXEL` marks unlabelled pixels.
    """

    # (B, 3, H, W) RGB in channels-last memory; uint8 from the loader, float in [0, 1] on the device
    images: Tensor
    # (N, 6) float: image index (ascending), class, cx, cy, w, h; the last four normalised by the network input size
    boxes: Tensor
    info: list[ImageInfo]  # of length B
    # (B,) bool, True where boxes are labelled; None: in all images
    boxes_known: Tensor | None = None
    # Instance masks: (N, h, w) bool, or (B, h, w) integers that number the boxes of each image from 1
    masks: Tensor | None = None
    # (B,) int64 class of each image, -1 for unlabelled images
    classes: Tensor | None = None
    # (B, H, W) uint8 class of each pixel; in evaluation at the original size, common to all images of the batch
    semantic: Tensor | None = None
    panoptic: list[PanopticLabels] | None = None  # in evaluation of panoptic data: segments of the B images
    # By head name: targets that its loss computed on the host, `Prepared` in utils/core/host_targets.py
    prepared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.info)

    def num_labelled(self, labels: str) -> Tensor | int:
        """Count the images with labels of one kind: `boxes`, `classes` or `semantic`."""
        if labels == "boxes":
            return len(self) if self.boxes_known is None else self.boxes_known.sum()
        if labels == "classes":
            return 0 if self.classes is None else (self.classes >= 0).sum()
        return 0 if self.semantic is None else (self.semantic != IGNORED_PIXEL).flatten(1).any(1).sum()

    @property
    def instances(self) -> int:
        """Number of labelled instances: boxes plus images with a class."""
        return len(self.boxes) + (0 if self.classes is None else int((self.classes >= 0).sum()))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("images", "boxes", "boxes_known", "masks", "classes", "semantic")
        changed: dict[str, Any] = {n: change(t) for n in names if (t := getattr(self, n)) is not None}
        return replace(self, **changed)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory (called by the data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, target: device) -> Batch:
        """Move the batch to `target`; images stay uint8 to transfer a quarter of the bytes."""
        moved = self._map(lambda tensor: tensor.to(target, non_blocking=True))
        return replace(moved, prepared={name: targets.to(target) for name, targets in self.prepared.items()})


@dataclass
class Results:
    """Predictions for one image, in pixels of the original image; None for kinds that no head predicts."""

    info: ImageInfo
    boxes: Tensor | None = None  # (n, 4) xyxy, clipped to the image, in descending order of score
    scores: Tensor | None = None  # (n,)
    classes: Tensor | None = None  # (n,) int64
    masks: Tensor | None = None  # (n, h, w) bool over the padded network input, usually at a quarter of its size
    batch_masks: Tensor | None = None  # (B, L, h, w) padded masks of the batch, of which `masks` is a view
    fine_masks: FineMasks | None = None  # the same n masks at the network input size or the original size
    semantic: Tensor | None = None  # (H, W) uint8 class of each pixel
    panoptic: PanopticMap | None = None  # segment of each pixel, merged from masks and semantic map
    probabilities: Tensor | None = None  # (C,) of the whole image
    candidates_cut: bool = False  # there were more NMS candidates than the limit

    def cpu(self) -> Results:
        """Copy the results of this image with all tensors on the CPU."""
        names = ("boxes", "scores", "classes", "masks", "fine_masks", "semantic", "probabilities")
        copied = {n: t.cpu() for n in names if (t := getattr(self, n)) is not None}
        return replace(self, batch_masks=None, **copied)


@dataclass(frozen=True)
class Frame:
    """One image to predict on and its position in the source."""

    image: np.ndarray  # (H, W, 3) BGR uint8
    path: str  # file, or URL of a stream without its password
    text: str  # its name in log lines: `image 1/2 path`
    number: int = 0  # position in the video or stream, from 1; 0: a still image
    count: int = 0  # number of frames in the video; 0: a still image or unknown
    fps: float = 30.0  # frame rate for written videos
    stream: int = 0  # index among streams that run in parallel

    @property
    def is_video(self) -> bool:
        """Whether the frame belongs to a video or stream."""
        return self.number > 0


class FrameSource(Protocol):
    """Iterable of frame groups to predict in one batch: one frame of a file, or the latest frame of each stream."""

    live: bool  # endless, like a camera
    faults: int  # number of unreadable files so far
    incomplete: Sequence[str]  # one line per video that could be decoded in part only

    def __iter__(self) -> Iterator[list[Frame]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class HeadSpec:
    """Static description of a head for its loss, post-processing and evaluator."""

    name: str  # key in the network output and in the registries
    num_classes: int
    strides: tuple[int, ...] = ()  # per level, finest first
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()  # L x A x (w, h) in pixels of the network input
    num_masks: int = 0  # mask coefficients per box
    names: tuple[str, ...] = ()  # class names of this head
    fit: str = "letterbox"  # how images are fitted to the input: `letterbox`, or `centre` (centre crop)
    usual_px: int = 640  # default input size
    loss: str = ""  # key in the registry of losses (default: name)
    bins: int = 0  # values per side of a box, of heads that predict distances; 0: other heads
    things: tuple[str, ...] = ()  # classes of `names` that have instance masks, of results that merge two heads
    end_to_end: bool = False  # the decoded tensor is `end_to_end`, which needs no NMS, in place of `predictions`


Raw = dict[str, "Tensor"]  # raw output of one head, input of its loss
Decoded = dict[str, "Tensor"]  # decoded output of one head, in pixels and probabilities


@dataclass
class Outputs:
    """Outputs of a runner for one batch, by head name; `raw` is empty for exported networks."""

    decoded: dict[str, Decoded]
    raw: dict[str, Raw] = field(default_factory=dict)


@dataclass
class Scores:
    """Result of an evaluator. Names of `metrics` lack the head: the engine adds the prefix `detect/`."""

    metrics: dict[str, float]
    columns: tuple[str, ...] = ()  # of the printed table
    rows: list[tuple[str, dict[str, float]]] = field(default_factory=list)  # "all" first, then one row per class
    per_class: dict[int, float] = field(default_factory=dict)  # main metric of each class that has labels
    note: str = ""  # printed below the table
    details: Any = None  # curves and matrices to plot: a dataclass of the evaluator's module


@dataclass(frozen=True)
class EvalSettings:
    """Settings of post-processing and evaluators, one record for all heads."""

    names: tuple[str, ...] = ()  # class names
    confidence: float = 0.001  # minimum score
    iou: float = 0.6  # NMS threshold
    max_detections: int = 300  # per image
    multi_label: bool = True  # several classes per box
    agnostic: bool = False  # class-agnostic NMS
    single_class: bool = False  # count every detection as class 0
    classes: tuple[int, ...] | None = None  # keep only these classes
    max_candidates: int = 30000  # boxes per image that enter NMS
    fine_masks: bool = False  # fill `Results.fine_masks` and evaluate masks at the network input size
    native_masks: bool = False  # scale masks to the original image directly from the prototypes
    annotations: Path | None = None  # COCO JSON of the split
    save_json: Path | None = None  # output file for COCO-format predictions
    merge: MergeSettings | None = None  # of panoptic maps; None: the defaults
    absent_as_zero: bool = False  # count classes absent from the data set as 0 in the mean IoU


# ----------------------------------------------------------------------------------------------------------------------
# Parts of a model


class Head(Protocol):
    """Output layer of a network, an `nn.Module` in the registry `HEADS`.

    `forward` maps feature maps to raw tensors, the same in training, evaluation and export; `decode` converts raw
    tensors to pixels and probabilities.
    """

    name: str
    num_classes: int

    def __call__(self, features: list[Tensor]) -> Raw: ...
    def decode(self, raw: Raw) -> Decoded: ...
    @property
    def spec(self) -> HeadSpec: ...


class Loss(Protocol):
    """Loss of a head: an `nn.Module`, called as `loss(raw, batch)`, that returns scalar terms by name.

    Terms include their gains and are means over the global batch (all ranks), so that the sum over ranks does not
    depend on the number of processes. Without labels a term is exactly zero but connected to all parameters of the
    head. State that changes during training lives in buffers and is saved with the run. The `hyp` of the constructor
    has scaled gains (`Hyp.scaled`).

    A loss may also be a `HostTargets` (`utils/core/host_targets.py`).
    """

    per_image: bool  # the engine multiplies the sum of terms by the number of labelled images
    labels: str  # kind of labels it reads: boxes (with masks), classes or semantic
    extra_terms: tuple[str, ...]  # terms beside those of the task, columns of results.csv
    omitted_terms: tuple[str, ...]  # terms of the task that this loss does not have
    training_terms: tuple[str, ...]  # further terms that exist in training only

    def __init__(self, spec: HeadSpec, hyp: Hyp) -> None: ...
    def __call__(self, raw: Raw, batch: Batch) -> dict[str, Tensor]: ...
    def to(self, target: device) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class PostProcess(Protocol):
    """Post-processing of a head: writes predictions to `results`; masks and semantic maps stay on their device."""

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None: ...
    def __call__(self, decoded: Decoded, results: list[Results]) -> None: ...


class Evaluator(Protocol):
    """Metrics of a head: `update` takes a batch with masks and semantic maps on one device, `compute` gathers ranks."""

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None: ...
    def update(self, results: list[Results], batch: Batch) -> None: ...
    def compute(self) -> Scores: ...


class Runner(Protocol):
    """Callable network: a PyTorch network, an ensemble or an exported file."""

    specs: dict[str, HeadSpec]  # by head name
    names: tuple[str, ...]  # class names of the main head
    stride: int
    fixed_hw: tuple[int, int] | None  # the only supported input size; None: any multiple of the stride

    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images."""


class Backend(Protocol):
    """File format that can be run: a class with static methods in the registry `BACKENDS`, used without an instance."""

    title: str  # display name
    suffixes: tuple[str, ...]  # of the files and folders that it opens
    capabilities: frozenset[str] = frozenset()  # supported options of export.py

    @staticmethod
    def unavailable_reason() -> str:
        """Explain why files of this format cannot run on this machine; empty if they can."""
        return ""

    @staticmethod
    def open(
        paths: Sequence[Path], device: device, half: bool = False, augment: bool = False
    ) -> tuple[Runner, dict[str, Any]]:
        """Open one file, or several as an ensemble; also return the metadata of the first file."""


# ----------------------------------------------------------------------------------------------------------------------
# Parts of a run


class Sink(Protocol):
    """Destination of predictions."""

    stopped: bool  # the user closed the destination to stop the prediction

    def write(self, frame: Frame, results: Results, annotated: Callable[[], np.ndarray]) -> None:
        """Write one frame; `annotated()` draws the annotated image, once for all sinks."""

    def close(self) -> str:
        """Finish the files and return a log text about them, or an empty string."""


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by the `epoch` method of a logger to end the training, like early stopping does."""


class Logger(Protocol):
    """Destination of training metrics. A failing logger is disabled with one warning; the run continues.

    `start` is called first and `finish` last, with empty arguments if the run was interrupted; a resumed run starts
    again in the same folder. `epoch` receives the columns of results.csv after every epoch (from 0), `image` the file
    of a plot. Loggers of `--log` run in a thread of their own unless their class sets `direct = True`.

    Two more methods are optional: `batch(step, metrics)` after every training batch (from 1) with its loss terms
    (`train/detect/box`), which synchronises the device; `checkpoint(path, epoch, best)` after `last.pt`, a better
    `best.pt` or a checkpoint of `--save-period` was written.
    """

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None: ...
    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None: ...
    def image(self, path: Path, epoch: int) -> None: ...
    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None: ...


class Loader(Protocol):
    """Batches of one split; every batch is a function of seed, epoch and position alone."""

    heads: tuple[str, ...]  # heads that its labels are for, and results of several heads (`panoptic`); empty: all
    num_images: int
    num_batches: int  # on this rank
    class_counts: np.ndarray  # (C,) boxes or images per class
    shapes_hw: np.ndarray  # (num_images, 2) original sizes in pixels

    @property
    def parts(self) -> Sequence[Loader]:
        """Loaders that are evaluated one after the other, each for its own heads; usually only this one."""

    @property
    def labels(self) -> list[np.ndarray]:
        """Per image an (n, 5) array of class and cxcywhn."""

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Iterate over an epoch from batch `start`; `image_weights` are sampling weights."""

    def with_batch_size(self, batch_size: int) -> Loader:
        """Load the same images in batches of another size; `batch_size` is that of one process."""


@dataclass(frozen=True)
class Task:
    """Record of a task: its heads, data, plots and fitness."""

    name: str
    heads: tuple[str, ...]  # required heads
    fitness: Mapping[str, float]  # weights of the metrics whose sum ranks epochs
    load: Callable[[LoadRequest], Loader]
    columns: Mapping[str, str]  # results.csv column -> metric name
    draw_batch: Callable[[Batch, Path, DataConfig, Sequence[Results] | None], None]
    draw_labels: Callable[[Loader, Path, DataConfig], None]
    draw_scores: Callable[[Mapping[str, Scores], Path, DataConfig], Iterable[Path]]
    periodic_heads: tuple[str, ...] = ()  # heads that are evaluated every `--seg-interval` epochs only
    gains: Callable[[Hyp], Mapping[str, float]] = lambda hyp: {}  # loss weights by head, default 1
    data: str = "data/shapes.yaml"  # default data set of validation
    cfg: str = "yolov5n"  # default architecture
    added_head: str = ""  # design of the semantic head for weights that lack one
    for_data: Callable[[Task, DataConfig], Task] = lambda task, data: task  # adapts the task to a data set
    fit_anchors: bool = False  # labels are boxes that anchors can be fitted to


SelectTask = Callable[[Collection[str]], Task]  # head names of a network -> the task that trains or evaluates it
