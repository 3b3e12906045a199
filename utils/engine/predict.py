"""Prediction loop: run a network on the frames of a source and pass the results to sinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.core.contracts import (
    EvalSettings,
    Frame,
    FrameSource,
    Geometry,
    ImageInfo,
    PostProcess,
    Results,
    Runner,
    Sink,
)
from utils.core.errors import UserError
from utils.core.log import LOGGER, Once, progress
from utils.core.timing import Stopwatch
from utils.core.train_settings import MAX_IMAGE_PX
from utils.engine.evaluate import last_step
from utils.ops.class_fractions import class_fractions
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.ops.nms import non_maximum_suppression
from utils.postprocess import POSTPROCESS

TOP_CLASSES = 5  # classes of a whole image in a log line
LOG_LINE_MAX_FRAMES = 100  # longer videos get a progress bar instead of a line per frame
MAX_LOGGED_SEMANTIC_CLASSES = 3
MIN_LOGGED_FRACTION = 0.01  # of an image, for semantic classes in a log line

DrawFunction = Callable[[np.ndarray, Results], np.ndarray]  # (H, W, 3) BGR image and its results -> annotated copy


@dataclass(frozen=True)
class PredictSettings:
    """Input size and post-processing of the prediction loop."""

    image_hw: tuple[int, int] = (640, 640)
    confidence: float = 0.25
    iou: float = 0.45
    max_detections: int = 1000
    classes: tuple[int, ...] | None = None
    agnostic: bool = False
    native_masks: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--conf-thres", self.confidence), ("--iou-thres", self.iou)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} expects a number from 0 to 1, got {value}")
        if self.max_detections < 1:
            raise UserError(f"--max-det expects a number of at least 1, got {self.max_detections}")


@dataclass
class PredictReport:
    """Counts and times of a prediction run. Stopwatches hold sums of seconds.

    The first batch of each shape is also counted separately, since it includes one-time initialisation.
    """

    frames: int = 0
    found: Counter[str] = field(default_factory=Counter)  # objects per class name
    network_hw: tuple[int, int] = (0, 0)  # input size of the last batch
    interrupted: bool = False
    unreadable_files: int = 0
    incomplete: list[str] = field(default_factory=list)  # videos that could be decoded in part only
    saved: list[str] = field(default_factory=list)  # summaries of the sinks
    preprocess: Stopwatch = field(default_factory=Stopwatch)
    inference: Stopwatch = field(default_factory=Stopwatch)
    postprocess: Stopwatch = field(default_factory=Stopwatch)
    first_frames: int = 0  # frames in the first batches of all shapes
    first_seconds: tuple[float, ...] = (0.0, 0.0, 0.0)  # time of these batches, per stopwatch
    last_step: str = "NMS"  # name of the post-processing in the log

    def record_first_batch(self, frames: int) -> None:
        """Count the last measured times as those of the first batch of a shape."""
        self.first_frames += frames
        watches = (self.preprocess, self.inference, self.postprocess)
        pairs = zip(self.first_seconds, watches, strict=True)
        self.first_seconds = tuple(seconds + watch.last for seconds, watch in pairs)

    def speed(self) -> str:
        """Format the mean times per image; first batches are excluded unless there are no others."""
        warm = self.frames - self.first_frames
        frames, excluded = (warm, self.first_seconds) if warm else (max(1, self.frames), (0.0, 0.0, 0.0))
        watches = (self.preprocess, self.inference, self.postprocess)
        before, inside, after = (
            1000 * (watch.seconds - seconds) / frames for watch, seconds in zip(watches, excluded, strict=True)
        )
        shape = (1, 3, *self.network_hw)
        return (
            f"Speed: {before:.1f} ms pre-process, {inside:.1f} ms inference, {after:.1f} ms {self.last_step} "
            f"per image at shape {shape}"
        )


def predict(
    runner: Runner,
    source: FrameSource,
    settings: PredictSettings,
    sinks: Sequence[Sink] = (),
    draw: DrawFunction | None = None,
    device: torch.device | None = None,
) -> PredictReport:
    """Predict on every frame of a source.

    Ctrl-C ends the loop early but cleanly: files are finished and the report has `interrupted` set.

    Args:
        runner: The network.
        source: Frames, closed at the end.
        settings: Input size and post-processing.
        sinks: Destinations of the results, closed at the end.
        draw: Draws the annotated images for the sinks; None: they get the images unchanged.
        device: Where the runner works; a GPU is synchronised when times are taken.

    Returns:
        Counts and times.
    """
    report = PredictReport(last_step=last_step(runner))
    report.inference, report.postprocess = Stopwatch(device), Stopwatch(device)
    predictor = _Predictor(runner, settings, report)
    console = _Console(runner.specs["semantic"].names if "semantic" in runner.specs else ())
    try:
        for frames in source:
            for frame, results in zip(frames, predictor.predict(frames), strict=True):
                counts = count_classes(results, runner.names)
                report.found.update(counts)
                summary = format_top_classes(results, runner.names) or format_counts(counts)
                console.log(frame, results, summary, report.inference.last)
                image = _AnnotatedImage(frame.image, results, draw)
                for sink in sinks:
                    sink.write(frame, results, image)
            if any(sink.stopped for sink in sinks):
                break
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        console.close()
        source.close()
        report.unreadable_files, report.incomplete = source.faults, list(source.incomplete)
        report.saved = [text for sink in sinks if (text := sink.close())]
    return report


def network_size(sizes: Sequence[int], runner: Runner) -> tuple[int, int]:
    """Round the values of `--imgsz` up to multiples of the stride.

    Args:
        sizes: One size, or height and width, in pixels.
        runner: Its stride counts.

    Returns:
        Height and width of the network input.

    Raises:
        UserError: Not one or two values between 1 and the maximum.
    """
    if not 1 <= len(sizes) <= 2 or min(sizes) < 1 or max(sizes) > MAX_IMAGE_PX:
        given = " ".join(map(str, sizes))
        raise UserError(f"--imgsz expects one size, or height and width, between 1 and {MAX_IMAGE_PX}, got {given}")
    height, width = (sizes[0], sizes[-1])
    rounded = (-(-height // runner.stride) * runner.stride, -(-width // runner.stride) * runner.stride)
    if rounded != (height, width):
        LOGGER.warning(f"--imgsz {height} {width}: not multiples of the stride {runner.stride}; using {rounded}")
    return rounded


class _AnnotatedImage:
    """The annotated image, drawn at the first call and cached."""

    def __init__(self, image: np.ndarray, results: Results, draw: DrawFunction | None) -> None:
        self._image, self._results, self._draw = image, results, draw
        self._drawn: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._drawn is None:
            self._drawn = self._draw(self._image, self._results) if self._draw else self._image
        return self._drawn


def _postprocessors(runner: Runner, settings: EvalSettings) -> dict[str, PostProcess]:
    return {name: POSTPROCESS.get(name)(spec, settings) for name, spec in runner.specs.items()}


class _Predictor:
    """Compute the results of frames: resize, network and post-processing, each of them timed."""

    def __init__(self, runner: Runner, settings: PredictSettings, report: PredictReport) -> None:
        self.runner, self.settings, self.report = runner, settings, report
        eval_settings = EvalSettings(
            names=runner.names,
            confidence=settings.confidence,
            iou=settings.iou,
            max_detections=settings.max_detections,
            multi_label=False,
            agnostic=settings.agnostic,
            classes=settings.classes,
            fine_masks=True,
            native_masks=settings.native_masks,
        )
        self.postprocessors = _postprocessors(runner, eval_settings)
        self.once = Once()
        self._seen_shapes: set[tuple[int, ...]] = set()
        self._warm_up(_postprocessors(runner, replace(eval_settings, confidence=0.0)))

    @torch.inference_mode()
    def _warm_up(self, postprocessors: Mapping[str, PostProcess]) -> None:
        """Run once on an empty image, so that initialisation is not counted as time of the first frame."""
        side = 2 * self.runner.stride
        small = (side, side) if any(spec.strides for spec in self.runner.specs.values()) else self.settings.image_hw
        height, width = self.runner.fixed_hw or small
        outputs = self.runner.run(torch.zeros((1, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2))
        for name, postprocess in postprocessors.items():
            geometry = Geometry((height, width), (height, width))
            postprocess(outputs.decoded[name], [Results(ImageInfo(0, "", geometry))])
            if self.runner.specs[name].strides:  # files that contain NMS return no box of an empty image
                non_maximum_suppression(torch.zeros(1, 4), torch.zeros(1), 0.5)

    @torch.inference_mode()
    def predict(self, frames: Sequence[Frame]) -> list[Results]:
        """Run frames as one batch; return their results on the CPU."""
        report = self.report
        with report.preprocess:
            images, info = self._batch(frames)
        with report.inference:
            outputs = self.runner.run(images)
        with report.postprocess:
            results = [Results(one) for one in info]
            for name, postprocess in self.postprocessors.items():
                postprocess(outputs.decoded[name], results)
            results = [one.cpu() for one in results]
        if any(one.candidates_cut for one in results):
            self.once.warn("NMS: some images have more candidates than the limit; raise --conf-thres to reduce them")
        report.network_hw = (int(images.shape[2]), int(images.shape[3]))
        report.frames += len(frames)
        if tuple(images.shape) not in self._seen_shapes:
            self._seen_shapes.add(tuple(images.shape))
            report.record_first_batch(len(frames))
        return results

    def _batch(self, frames: Sequence[Frame]) -> tuple[Tensor, list[ImageInfo]]:
        """Resize frames to a (B, 3, H, W) uint8 RGB batch in channels-last memory."""
        runner = self.runner
        target_hw = runner.fixed_hw or self.settings.image_hw
        if all(spec.fit == "centre" for spec in runner.specs.values()):
            fitted = [centre_crop(frame.image, target_hw) for frame in frames]
        else:
            same_shape = len({frame.image.shape for frame in frames}) == 1
            auto = runner.fixed_hw is None and same_shape  # a minimal rectangle must suit all images of the batch
            fitted = [letterbox(frame.image, target_hw, auto=auto, stride=runner.stride) for frame in frames]
        pixels = np.stack([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in fitted])
        info = [ImageInfo(i, frame.path, fitted[i][1]) for i, frame in enumerate(frames)]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), info


class _Console:
    """Log a line per frame, or show a progress bar for long videos."""

    def __init__(self, semantic_names: Sequence[str]) -> None:
        self._semantic_names = semantic_names
        self._bar: tqdm | None = None
        self._path = ""

    def log(self, frame: Frame, results: Results, summary: str, seconds: float) -> None:
        if frame.path != self._path:
            self.close()
            self._path = frame.path
        if frame.count > LOG_LINE_MAX_FRAMES:
            if self._bar is None:
                self._bar = progress(total=frame.count, text=frame.text.replace(f" ({frame.number}/{frame.count})", ""))
            self._bar.update(frame.number - self._bar.n)
            return
        height, width = results.info.geometry.network_hw
        parts = [summary] if results.semantic is None or results.boxes is not None else []
        if results.semantic is not None:
            parts.append(format_class_fractions(class_fractions(results.semantic.numpy()), self._semantic_names))
        LOGGER.info(f"{frame.text}: {height}x{width} {'; '.join(parts)}, {seconds * 1000:.1f}ms")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def count_classes(results: Results, names: Sequence[str]) -> Counter[str]:
    """Count the objects of each class name, in the order of classes; a classified image counts as one object."""
    if results.classes is None and results.probabilities is not None:
        return Counter([_name(names, int(results.probabilities.argmax()))])
    found = [] if results.classes is None else sorted(results.classes.tolist())
    return Counter(_name(names, index) for index in found)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def format_top_classes(results: Results, names: Sequence[str]) -> str:
    """Format the five most probable classes of an image, `ants 0.87, bees 0.13`; empty without a classifier."""
    if results.probabilities is None:
        return ""
    order = torch.argsort(results.probabilities, descending=True, stable=True)[:TOP_CLASSES].tolist()
    return ", ".join(f"{_name(names, index)} {float(results.probabilities[index]):.2f}" for index in order)


def format_counts(counts: Mapping[str, int]) -> str:
    """Format numbers of objects, `4 persons, 1 bus`, or `(no detections)`."""
    return ", ".join(f"{n} {name if n == 1 else plural(name)}" for name, n in counts.items()) or "(no detections)"


def format_class_fractions(fractions: Mapping[int, float], names: Sequence[str]) -> str:
    """Format the largest semantic classes, `road 41 %, sky 20 %, car 9 %`, without those below one percent."""
    shown = []
    large = [(index, fraction) for index, fraction in fractions.items() if fraction >= MIN_LOGGED_FRACTION]
    for index, fraction in large[:MAX_LOGGED_SEMANTIC_CLASSES]:
        name = names[index] if index < len(names) else str(index)
        shown.append(f"{'class ' if name.isdigit() else ''}{name} {100 * fraction:.0f} %")
    return ", ".join(shown) or "(no classes)"


@lru_cache(maxsize=1024)
def plural(name: str) -> str:
    """Form the English plural of a class name: persons, buses, benches; plurals like scissors stay unchanged."""
    if name.endswith(("us", "ss", "x", "ch", "sh")):
        return f"{name}es"
    return name if name.endswith("s") else f"{name}s"
