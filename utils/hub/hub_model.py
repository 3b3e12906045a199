"""Callable model with the interface of YOLOv5's `torch.hub` models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.ensemble import Ensemble
from models.layer_times import layer_table, time_layers
from models.network import Network
from models.network_runner import ConvertedRunner, NetworkRunner, to_input
from models.tta import with_tta
from utils.backends.open_weights import open_weights
from utils.core.contracts import Decoded, EvalSettings, Geometry, ImageInfo, Raw, Results, Runner
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.timing import Stopwatch
from utils.core.train_settings import MAX_IMAGE_PX
from utils.hub.detections import Detections
from utils.hub.image_inputs import common_shape, load_images
from utils.hub.nearest_attribute import nearest_attribute
from utils.ops.crop import centre_crop
from utils.ops.letterbox import letterbox
from utils.postprocess import POSTPROCESS

PROFILE_RUNS = 10  # timed runs of `profile=True`
_SETTINGS = ("conf", "iou", "max_det", "agnostic", "multi_label", "classes", "urls", "amp", "names")
HeadTensors = Tensor | tuple[Tensor, ...]


class Model(nn.Module):
    """A network that is called with images of any kind and returns `Detections`, as from `torch.hub.load`.

    Attributes may be changed at any time; an unknown name raises AttributeError. `to`, `half`, `parameters`,
    `state_dict` and the other methods of `nn.Module` act on the network; exported files have no parameters and stay on
    their device.

    Args:
        runner: The network.
        device: Where it runs.
        meta: Training metadata of the checkpoint.

    Attributes:
        conf: Confidence threshold.
        iou: IoU threshold of NMS.
        max_det: Maximum number of detections per image.
        agnostic: Apply NMS across classes.
        multi_label: Allow several classes per box.
        classes: Class index or indices to detect; None: all.
        urls: Allow downloads of images from URLs.
        names: Class names by index.
        model: The network, a `ModuleList` of them for an ensemble, None for exported files.
        device: Where the model runs.
    """

    model: nn.Module | None

    def __init__(self, runner: Runner, device: torch.device, meta: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.runner, self.device, self.meta = runner, device, meta or {}
        self.conf, self.iou, self.max_det = 0.25, 0.45, 1000
        self.agnostic = self.multi_label = self.urls = False
        self.classes: int | Sequence[int] | None = None
        self.names: Mapping[int, str] | Sequence[str] = dict(enumerate(runner.names))
        self._amp = False
        self._mixed = getattr(runner, "mixed", None)
        self._augmented: Runner | None = None
        self.model = _find_network(runner)
        self.eval()
        self._complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_complete" in vars(self) and not name.startswith("_") and not hasattr(self, name):
            hint = nearest_attribute(name, _SETTINGS) or f"; the settings are {', '.join(_SETTINGS)}"
            raise AttributeError(f"Model has no attribute {name!r}{hint}", name=name, obj=self)
        super().__setattr__(name, value)
        if name == "model" and "_complete" in vars(self):
            self._rebuild_runner()

    def _apply(self, fn: Any, recurse: bool = True) -> Model:
        """Move or convert the network, and run it accordingly from now on."""
        super()._apply(fn, recurse)
        self._rebuild_runner()
        return self

    def float(self) -> Model:
        """Compute in fp32."""
        self._mixed = None
        return super().float()

    def _rebuild_runner(self) -> None:
        """Create the runner for the type and device that the network has now."""
        if self.model is None:
            return
        networks = list(self.model) if isinstance(self.model, nn.ModuleList) else [self.model]
        self.device = next(self.model.parameters()).device
        members = [self._run_network(cast(Network, network)) for network in networks]
        self.runner = members[0] if len(members) == 1 else Ensemble(members)
        self._augmented = None

    def _run_network(self, network: Network) -> NetworkRunner:
        if next(network.parameters()).dtype == torch.float16:
            return ConvertedRunner(network, self.device)
        fp16 = self._amp and self.device.type != "cpu"
        return NetworkRunner(network, self.device, torch.float16 if fp16 else self._mixed)

    @property
    def amp(self) -> bool:
        """Use automatic mixed precision on GPUs; CPUs compute in the type of the weights."""
        return self._amp

    @amp.setter
    def amp(self, on: bool) -> None:
        self._amp = bool(on)
        self._rebuild_runner()

    @property
    def pt(self) -> bool:
        """Whether the model is a PyTorch network, not an exported file."""
        return self.model is not None

    @property
    def fp16(self) -> bool:
        """Whether the weights are in half precision."""
        return any(tensor.dtype == torch.float16 for tensor in self.parameters())

    @property
    def yaml(self) -> dict[str, Any]:
        """Description that rebuilds the (first) network; empty for exported files."""
        network = next((part for part in self.modules() if isinstance(part, Network)), None)
        return {} if network is None else dict(network.architecture)

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def stride(self) -> int:
        """Height and width of the network input are multiples of it."""
        return self.runner.stride

    @property
    def class_names(self) -> tuple[str, ...]:
        """`names` in the order of the indices."""
        return tuple(self.names.values()) if isinstance(self.names, Mapping) else tuple(self.names)

    @property
    def default_px(self) -> int:
        """Default size of the network input."""
        return max((spec.usual_px for spec in self.runner.specs.values()), default=640)

    @property
    def uses_centre_crop(self) -> bool:
        """Whether the network takes the central square of images instead of whole images with padding."""
        return any(spec.fit == "centre" for spec in self.runner.specs.values())

    def __repr__(self) -> str:
        return f"Model({', '.join(self.runner.specs)}; {len(self.runner.names)} classes; {self.device})"

    def forward(
        self,
        images: Any,
        size: int | Sequence[int] | None = None,
        augment: bool = False,
        profile: bool = False,
        shape: tuple[int, int] | None = None,
    ) -> Any:
        """Predict on one image or a list of images, which may differ in type and size.

        Args:
            images: See `load_images`. A (B, 3, H, W) tensor, uint8 or floats in [0, 1], is passed to the network as it
                is.
            size: Longer side of the network input in pixels, or height and width, of which the larger counts; None:
                640, for classifiers 224.
            augment: Apply test-time augmentation.
            profile: Log the time of every layer for this input.
            shape: Exact height and width of the network input, instead of `size`.

        Returns:
            The `Detections`; for a (B, 3, H, W) tensor what `raw_output` returns.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            if profile:
                self._log_layer_times(tuple(images.shape))
            return self.raw_output(images, augment)
        preprocess, inference, postprocess = (Stopwatch(self.device) for _ in range(3))
        with preprocess:
            loaded = load_images(images, self.urls)
            arrays = [image.bgr for image in loaded]
            longer = self.default_px if size is None else size if isinstance(size, int) else _longer_side(size)
            shape_hw = self.input_shape([array.shape[:2] for array in arrays], shape or longer)
            batch, geometries = self.fit(arrays, shape_hw)
            info = [ImageInfo(i, loaded[i].name, geometry) for i, geometry in enumerate(geometries)]
        if profile:
            self._log_layer_times(tuple(batch.shape))
        with inference:
            decoded = self.decode(batch, augment)
        with postprocess:
            results = self._postprocess(decoded, info)
        seconds = tuple(watch.seconds for watch in (preprocess, inference, postprocess))
        return Detections(loaded, results, (self.class_names, self._semantic_names), seconds, tuple(batch.shape))

    @property
    def _semantic_names(self) -> tuple[str, ...]:
        spec = self.runner.specs.get("semantic")
        return tuple(spec.names) if spec is not None and spec.names else self.class_names

    @torch.no_grad()
    def raw_output(self, images: Tensor, augment: bool = False) -> HeadTensors:
        """Run a (B, 3, H, W) batch without post-processing; this is what `torch.jit.trace` records.

        Args:
            images: uint8 or floats in [0, 1].
            augment: Apply test-time augmentation.

        Returns:
            Boxes: (B, N, 5 + C) centre, width, height, objectness and class probabilities, in pixels of the input;
            with masks a tuple of (B, N, 5 + C + M) and the prototypes (B, M, h, w). Classifiers: (B, C) logits.
            Semantic segmentation: (B, C, h, w) logits, usually of an eighth of the input. Several heads: the tuple of
            all tensors.
        """
        network = self.model
        if augment or not isinstance(network, Network):
            outputs = (self._with_augmentation() if augment else self.runner).run(images)
            decoded, raw = outputs.decoded, outputs.raw
        else:
            mixed = getattr(self.runner, "mixed", None)
            with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
                raw = network(to_input(images, self.device, next(network.parameters()).dtype))
            decoded = network.decode(raw)
        tensors = [tensor for name in decoded for tensor in _flatten_head(decoded[name], raw.get(name, {}))]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    @torch.inference_mode()
    def decode(self, images: Tensor, augment: bool = False) -> dict[str, Decoded]:
        """Run a (B, 3, H, W) batch, uint8 or floats in [0, 1]; return the decoded outputs by head name."""
        return (self._with_augmentation() if augment else self.runner).run(images).decoded

    def _with_augmentation(self) -> Runner:
        if self._augmented is None:
            self._augmented = with_tta(self.runner)
        return self._augmented

    def _log_layer_times(self, shape: tuple[int, ...]) -> None:
        """Log a table of the time of every layer for inputs of `shape`, (B, 3, H, W)."""
        if not isinstance(self.model, Network):
            raise UserError("profile: layers are only accessible in a single PyTorch checkpoint; leave it out")
        batch, _, height, width = shape
        LOGGER.info(layer_table(time_layers(self.model, (height, width), batch, self.device, PROFILE_RUNS)))

    def input_shape(self, sizes_hw: Sequence[Any], size: int | tuple[int, int]) -> tuple[int, int]:
        """Choose the network input for a batch of images.

        Args:
            sizes_hw: Height and width of each image.
            size: Longer side, or height and width.

        Returns:
            Height and width in pixels.
        """
        if self.runner.fixed_hw is not None:
            return self.runner.fixed_hw
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_IMAGE_PX for side in sides):
            raise UserError(f"size expects pixels, or height and width, between 1 and {MAX_IMAGE_PX}, got {size!r}")
        if isinstance(size, int) and not self.uses_centre_crop:
            return common_shape(sizes_hw, size, self.stride)
        height, width = (-(-side // self.stride) * self.stride for side in sides)
        return height, width

    def fit(self, images: Sequence[np.ndarray], shape_hw: tuple[int, int]) -> tuple[Tensor, list[Geometry]]:
        """Fit images to the network input.

        Args:
            images: (H, W, 3) BGR arrays.
            shape_hw: Height and width of the input.

        Returns:
            (B, 3, H, W) uint8 RGB, and how each image was resized.
        """
        if self.uses_centre_crop:
            fitted = [centre_crop(image, shape_hw) for image in images]
        else:
            fitted = [letterbox(image, shape_hw, auto=False, stride=self.stride) for image in images]
        pixels = np.stack([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in fitted])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), [geometry for _, geometry in fitted]

    @torch.inference_mode()
    def _postprocess(self, decoded: dict[str, Decoded], info: Sequence[ImageInfo]) -> list[Results]:
        settings = EvalSettings(
            names=self.class_names,
            confidence=self.conf,
            iou=self.iou,
            max_detections=self.max_det,
            multi_label=self.multi_label,
            agnostic=self.agnostic,
            classes=_class_indices(self.classes),
            fine_masks=True,
        )
        results = [Results(one) for one in info]
        for name, spec in self.runner.specs.items():
            POSTPROCESS.get(name)(spec, settings)(decoded[name], results)
        return [one.cpu() for one in results]


def _find_network(runner: Runner) -> nn.Module | None:
    """Find the network of a runner; for an ensemble all of them, for exported files None."""
    if isinstance(runner, Ensemble):
        members = [_find_network(member) for member in runner.members]
        return None if None in members else nn.ModuleList(cast(list[nn.Module], members))
    return runner.network if isinstance(runner, NetworkRunner) else None


def _flatten_head(decoded: Decoded, raw: Raw) -> list[Tensor]:
    """List the tensors of one head: boxes before prototypes, logits instead of probabilities."""
    if "probabilities" in decoded:
        return [raw["logits"] if "logits" in raw else decoded["probabilities"].log()]
    return list(decoded.values())


def _class_indices(classes: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if classes is None:
        return None
    return (classes,) if isinstance(classes, int) else tuple(int(index) for index in classes)


def _longer_side(size: Sequence[int]) -> int:
    if not size or not all(isinstance(side, int) for side in size):
        raise UserError(f"size expects pixels, or height and width, got {size!r}")
    return max(size)


def load(
    weights: str | Path | Sequence[str | Path], device: str = "", half: bool = False, download: bool = False
) -> Model:
    """Load checkpoints or exported files as a `Model`.

    Args:
        weights: A file, or several that form an ensemble.
        device: As --device of the programs; empty: the first GPU, else the CPU.
        half: Compute in half precision.
        download: Fetch official weights that are missing.

    Returns:
        The model.
    """
    paths = [weights] if isinstance(weights, (str, Path)) else list(weights)
    selected = select_device(str(device))
    opened = open_weights([str(path) for path in paths], selected, half=half, download=download)
    return Model(opened.runner, selected, opened.meta)
