"""The prediction loop: frames in, results to wherever they are wanted."""

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

SUREST = 5  # classes of a whole image that are named
LONG_VIDEO = 100  # frames; longer ones show a bar instead of a line per frame
SHOWN_SHARES = 3  # classes of pixels in a line

Draw = Callable[[np.ndarray, Results], np.ndarray]


@dataclass(frozen=True)
class PredictSettings:
    """How to look at frames."""

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
                raise UserError(f"{name} {value}: must be from 0 to 1")
        if self.max_detections < 1:
            raise UserError(f"--max-det {self.max_detections}: must be at least 1")


@dataclass
class PredictReport:
    """What a prediction run did. Times are sums in seconds.

    The first batch of each shape is measured apart: it pays for what is set up once.
    """

    frames: int = 0
    found: Counter[str] = field(default_factory=Counter)  # objects per class name
    network_hw: tuple[int, int] = (0, 0)  # of the last batch
    interrupted: bool = False
    faults: int = 0  # files that could not be read
    saved: list[str] = field(default_factory=list)
    prepare: Stopwatch = field(default_factory=Stopwatch)
    infer: Stopwatch = field(default_factory=Stopwatch)
    finish: Stopwatch = field(default_factory=Stopwatch)
    first_frames: int = 0  # in the first batches of all shapes
    first_seconds: tuple[float, ...] = (0.0, 0.0, 0.0)  # that these took
    last_step: str = "NMS"  # what follows the network

    def note_first(self, frames: int) -> None:
        """Count the last times taken as those of a first batch, of so many frames."""
        self.first_frames += frames
        watches = (self.prepare, self.infer, self.finish)
        pairs = zip(self.first_seconds, watches, strict=True)
        self.first_seconds = tuple(seconds + watch.last for seconds, watch in pairs)

    def speed(self) -> str:
        """Return the line about speed (behaviour.md 5.3): of first batches only if there are no others."""
        warm = self.frames - self.first_frames
        frames, left_out = (warm, self.first_seconds) if warm else (max(1, self.frames), (0.0, 0.0, 0.0))
        watches = (self.prepare, self.infer, self.finish)
        before, inside, after = (
            1000 * (watch.seconds - seconds) / frames for watch, seconds in zip(watches, left_out, strict=True)
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
    draw: Draw | None = None,
    device: torch.device | None = None,
) -> PredictReport:
    """Predict on every frame of `source` and hand the results to `sinks`.

    `device` is where the runner works, so that a GPU is waited for when times are taken.
    Ctrl-C ends the loop early but in order: files are finished and the report says `interrupted`.
    """
    report = PredictReport(last_step=last_step(runner))
    report.infer, report.finish = Stopwatch(device), Stopwatch(device)
    looker = _Looker(runner, settings, report)
    console = _Console(runner.specs["semantic"].names if "semantic" in runner.specs else ())
    try:
        for frames in source:
            for frame, results in zip(frames, looker.look(frames), strict=True):
                counts = count_classes(results, runner.names)
                report.found.update(counts)
                console.show(frame, results, surest_in_words(results, runner.names) or in_words(counts), report)
                picture = _Picture(frame.image, results, draw)
                for sink in sinks:
                    sink.write(frame, results, picture)
            if any(sink.stopped for sink in sinks):
                break
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        console.close()
        source.close()
        report.faults = source.faults
        report.saved = [text for sink in sinks if (text := sink.close())]
    return report


def network_size(sizes: Sequence[int], runner: Runner) -> tuple[int, int]:
    """Return height and width for `--imgsz` with one or two numbers, rounded up to the stride of `runner`."""
    if not 1 <= len(sizes) <= 2 or min(sizes) < 1 or max(sizes) > MAX_IMAGE_PX:
        wanted = f"one size, or height and width, up to {MAX_IMAGE_PX}"
        raise UserError(f"--imgsz {' '.join(map(str, sizes))}: {wanted}")
    height, width = (sizes[0], sizes[-1])
    fitting = (-(-height // runner.stride) * runner.stride, -(-width // runner.stride) * runner.stride)
    if fitting != (height, width):
        LOGGER.warning(f"--imgsz {height} {width}: no multiples of the stride {runner.stride}; taking {fitting}")
    return fitting


class _Picture:
    """The annotated image, drawn at the first call only."""

    def __init__(self, image: np.ndarray, results: Results, draw: Draw | None) -> None:
        self._image, self._results, self._draw = image, results, draw
        self._drawn: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._drawn is None:
            self._drawn = self._draw(self._image, self._results) if self._draw else self._image
        return self._drawn


def _steps(runner: Runner, settings: EvalSettings) -> dict[str, PostProcess]:
    return {name: POSTPROCESS.get(name)(spec, settings) for name, spec in runner.specs.items()}


class _Looker:
    """Frames to results: letterbox, network, post-processing by head name, each timed."""

    def __init__(self, runner: Runner, settings: PredictSettings, report: PredictReport) -> None:
        self.runner, self.settings, self.report = runner, settings, report
        shared = EvalSettings(
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
        self.steps = _steps(runner, shared)
        self.once = Once()
        self._seen: set[tuple[int, ...]] = set()  # shapes of batches
        self._warm_up(_steps(runner, replace(shared, confidence=0.0)))

    @torch.inference_mode()
    def _warm_up(self, steps: dict[str, PostProcess]) -> None:
        """Run once on nothing, so that what loads at the first use is not counted as the first frame's time."""
        side = 2 * self.runner.stride
        small = (side, side) if any(spec.strides for spec in self.runner.specs.values()) else self.settings.image_hw
        height, width = self.runner.fixed_hw or small
        outputs = self.runner.run(torch.zeros((1, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2))
        for name, step in steps.items():
            step(outputs.decoded[name], [Results(ImageInfo(0, "", Geometry((height, width), (height, width))))])
            if self.runner.specs[name].strides:  # a file that suppresses by itself leaves nothing of an empty image
                non_maximum_suppression(torch.zeros(1, 4), torch.zeros(1), 0.5)

    @torch.inference_mode()
    def look(self, frames: Sequence[Frame]) -> list[Results]:
        """Return the results of frames that go through the network together, on the CPU."""
        report = self.report
        with report.prepare:
            images, info = self._batch(frames)
        with report.infer:
            outputs = self.runner.run(images)
        with report.finish:
            results = [Results(one) for one in info]
            for name, step in self.steps.items():
                step(outputs.decoded[name], results)
            results = [one.cpu() for one in results]
        if any(one.candidates_cut for one in results):
            self.once.warn("more boxes than non-maximum suppression takes; a higher --conf-thres keeps fewer")
        report.network_hw = (int(images.shape[2]), int(images.shape[3]))
        report.frames += len(frames)
        if tuple(images.shape) not in self._seen:
            self._seen.add(tuple(images.shape))
            report.note_first(len(frames))
        return results

    def _batch(self, frames: Sequence[Frame]) -> tuple[Tensor, list[ImageInfo]]:
        """Return (B, 3, H, W) uint8 RGB, channels last in memory, and where each image came from."""
        runner = self.runner
        target_hw = runner.fixed_hw or self.settings.image_hw
        if all(spec.fit == "centre" for spec in runner.specs.values()):
            boxed = [centre_crop(frame.image, target_hw) for frame in frames]
        else:
            same = len({frame.image.shape for frame in frames}) == 1
            auto = runner.fixed_hw is None and same  # the smallest rectangle only where all images share it
            boxed = [letterbox(frame.image, target_hw, auto=auto, stride=runner.stride) for frame in frames]
        pixels = np.stack([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in boxed])
        info = [ImageInfo(i, frame.path, boxed[i][1]) for i, frame in enumerate(frames)]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), info


class _Console:
    """A line for every frame; a bar for a long video."""

    def __init__(self, pixel_names: Sequence[str]) -> None:
        self._pixel_names = pixel_names
        self._bar: tqdm | None = None
        self._path = ""

    def show(self, frame: Frame, results: Results, words: str, report: PredictReport) -> None:
        if frame.path != self._path:
            self.close()
            self._path = frame.path
        if frame.count > LONG_VIDEO:
            if self._bar is None:
                self._bar = progress(total=frame.count, text=frame.text.replace(f" ({frame.number}/{frame.count})", ""))
            self._bar.update(frame.number - self._bar.n)
            return
        height, width = results.info.geometry.network_hw
        found = [words] if results.semantic is None or results.boxes is not None else []
        if results.semantic is not None:
            found.append(shares_in_words(class_fractions(results.semantic.numpy()), self._pixel_names))
        LOGGER.info(f"{frame.text}: {height}x{width} {'; '.join(found)}, {report.infer.last * 1000:.1f}ms")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def count_classes(results: Results, names: Sequence[str]) -> Counter[str]:
    """Return how many objects of each class were found, in the order of the classes; a whole image counts as one."""
    if results.classes is None and results.probabilities is not None:
        return Counter([_name(names, int(results.probabilities.argmax()))])
    found = [] if results.classes is None else sorted(results.classes.tolist())
    return Counter(_name(names, index) for index in found)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def surest_in_words(results: Results, names: Sequence[str]) -> str:
    """Return `ants 0.87, bees 0.13`, the five surest classes of the whole image; "" where nobody looked for them."""
    if results.probabilities is None:
        return ""
    order = torch.argsort(results.probabilities, descending=True, stable=True)[:SUREST].tolist()
    return ", ".join(f"{_name(names, index)} {float(results.probabilities[index]):.2f}" for index in order)


def in_words(counts: Counter[str]) -> str:
    """Return `4 persons, 1 bus`, or `(no detections)`."""
    return ", ".join(f"{n} {name if n == 1 else plural(name)}" for name, n in counts.items()) or "(no detections)"


def shares_in_words(shares: Mapping[int, float], names: Sequence[str]) -> str:
    """Return `road 41 %, sky 20 %, car 9 %`: the largest classes that cover at least one pixel in a hundred."""
    shown = []
    for index, share in [(index, share) for index, share in shares.items() if share >= 0.01][:SHOWN_SHARES]:
        name = names[index] if index < len(names) else str(index)
        shown.append(f"{'class ' if name.isdigit() else ''}{name} {100 * share:.0f} %")
    return ", ".join(shown) or "(no classes)"


@lru_cache(maxsize=1024)
def plural(name: str) -> str:
    """Return `name` with an s: persons, buses, benches; names that are plurals already (scissors) stay."""
    if name.endswith(("us", "ss", "x", "ch", "sh")):
        return f"{name}es"
    return name if name.endswith("s") else f"{name}s"
