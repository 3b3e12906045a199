"""One object per model with the actions of the programs: predict, val, train and export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyolo.callbacks import Callbacks, RunRecorder, loggers_of
from utils.core.cli import to_namespace, to_settings
from utils.core.errors import UserError
from utils.programs.classification_options import class_val_parser
from utils.programs.export import export_checkpoints
from utils.programs.export_settings import ExportSettings, export_parser
from utils.programs.train import task_parser, train_task
from utils.programs.val import val_parser, validate_task

if TYPE_CHECKING:
    from utils.core.contracts import Logger
    from utils.hub.detections import Detections
    from utils.hub.hub_model import Model

RUN_FOLDERS = {"detect": "train", "segment": "train-seg", "classify": "train-cls"}  # below runs/, by task
_DESCRIPTIONS = (".yaml", ".yml")


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a training.

    Attributes:
        metrics: Metrics of the best checkpoint by name, such as `detect/map50`.
        folder: Folder of the run.
        best: Checkpoint of the best epoch.
        last: Checkpoint of the last epoch.
    """

    metrics: dict[str, float]
    folder: Path
    best: Path
    last: Path


class YOLO:
    """A model by its file: a checkpoint, an exported file, or the YAML of a network that is to be trained.

    Args:
        weights: The file or the name of a network, such as `yolov5n.pt` or `yolov5n.yaml`; several files form an
            ensemble.
        task: detect, segment or classify; None: that of the checkpoint.
        device: As --device of the programs; empty: the first GPU, else the CPU.
        download: Fetch official weights that are missing.

    Raises:
        UserError: The file is missing or damaged, or a YAML is given with other files.
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path],
        task: str | None = None,
        *,
        device: str = "",
        download: bool = False,
    ) -> None:
        self.weights = [str(weights)] if isinstance(weights, (str, Path)) else [str(path) for path in weights]
        self.device, self.download = device, download
        self._task = task
        self._model: Model | None = None
        if task is not None and task not in RUN_FOLDERS:
            raise UserError(f"task {task!r}: unknown; use one of {', '.join(RUN_FOLDERS)}")
        if self.is_description:
            if len(self.weights) > 1:
                raise UserError(f"{self.weights[0]}: a network YAML cannot be part of an ensemble; give it alone")
        else:
            self._model = self._load()

    def __repr__(self) -> str:
        return f"YOLO({', '.join(self.weights)}; {self.task})"

    def _load(self) -> Model:
        from utils.hub.hub_model import load as load_model  # loads torch

        return load_model(self.weights, self.device, download=self.download)

    @property
    def is_description(self) -> bool:
        """Whether the model is a YAML without weights."""
        return self.weights[0].endswith(_DESCRIPTIONS)

    @property
    def model(self) -> Model:
        """The loaded network, with the interface of `torch.hub` models; see docs/hub.md.

        Raises:
            UserError: The model is a YAML, which has no weights.
        """
        if self._model is None:
            raise UserError(f"{self.weights[0]}: has no weights; train it first: result = model.train(data=...)")
        return self._model

    @property
    def task(self) -> str:
        """detect, segment or classify; networks with a semantic head only are validated as detect."""
        if self._task is not None:
            return self._task
        heads = self._model.runner.specs if self._model is not None else {}
        named = [task for task in ("segment", "classify") if task in heads]
        return named[0] if named else "detect"

    @property
    def names(self) -> dict[int, str]:
        """Class names by index."""
        return dict(enumerate(self.model.class_names))

    def predict(
        self,
        images: object,
        *,
        size: int | tuple[int, int] | None = None,
        conf: float = 0.25,
        iou: float = 0.45,
        max_det: int = 1000,
        classes: int | Sequence[int] | None = None,
        augment: bool = False,
    ) -> Detections:
        """Predict on one image or a list of images.

        Args:
            images: Paths, PIL images, RGB arrays (H, W, 3), torch images, or a list of these.
            size: Longer side of the network input in pixels; None: that of the checkpoint, else 640, for classifiers
                224.
            conf: Confidence threshold.
            iou: IoU threshold of NMS.
            max_det: Maximum number of detections per image.
            classes: Class index or indices to detect; None: all.
            augment: Apply test-time augmentation.

        Returns:
            The results of all images; iterate over them or select one by its index.
        """
        model = self.model
        model.conf, model.iou, model.max_det, model.classes = conf, iou, max_det, classes
        trained = model.meta.get("imgsz")
        found: Detections = model(images, size=size or (int(trained) if trained else None), augment=augment)
        return found

    __call__ = predict

    def val(self, data: str | Path = "", **options: object) -> dict[str, float]:
        """Validate on a data set.

        Args:
            data: Data-set YAML or folder; empty: that of the training.
            **options: Options of val.py with underscores for dashes, `imgsz=[640]`, `batch_size=16`.

        Returns:
            Metrics by name, such as `detect/map50`.

        Raises:
            TypeError: An option is unknown; the message has the nearest names.
        """
        task = self.task
        parser = class_val_parser(None) if task == "classify" else val_parser(None)
        if task == "segment":
            parser.set_defaults(project="runs/val-seg")
        given = self._with_device({"weights": self.weights, "data": str(data), "download": self.download, **options})
        return validate_task(task, parser, given, f"runs/{RUN_FOLDERS[task]}")

    def train(
        self,
        data: str | Path = "",
        epochs: int | None = None,
        *,
        callbacks: Callbacks | None = None,
        loggers: Sequence[Logger] = (),
        **options: object,
    ) -> TrainingResult:
        """Train on a data set, starting with the weights of this model; afterwards the model is the best checkpoint.

        Args:
            data: Data-set YAML or folder; empty: the generated shapes.
            epochs: Number of epochs; None: as the data set recommends, else 100.
            callbacks: Functions to call during the training.
            loggers: Loggers beside those of the option `log`.
            **options: Options of train.py with underscores for dashes, `batch_size=16`, `imgsz=[640]`, `device="0"`.

        Returns:
            Metrics and files.

        Raises:
            TypeError: An option is unknown; the message has the nearest names.
        """
        if len(self.weights) > 1:
            raise UserError(f"train: an ensemble of {len(self.weights)} models cannot be trained; load one of them")
        parser = task_parser(self.task, None)
        given: dict[str, object] = dict(options)
        if self.task == "classify":
            given["model"] = self.weights[0]
        else:
            given["cfg" if self.is_description else "weights"] = self.weights[0]
        given |= {"data": str(data)} if data else {}
        given |= {"epochs": epochs} if epochs is not None else {}
        given = self._with_device(given)
        to_namespace(task_parser(self.task, None), dict(given))  # checks the names
        recorder = RunRecorder()
        metrics = train_task(self.task, parser, given, [recorder, *loggers_of(callbacks), *loggers])
        weights = recorder.folder / "weights"
        result = TrainingResult(metrics, recorder.folder, weights / "best.pt", weights / "last.pt")
        if result.best.is_file():  # absent with the options nosave and resume of a finished run
            self.weights = [str(result.best)]
            self._model = self._load()
        return result

    def export(self, format: str = "onnx", **options: object) -> Path:  # noqa: A002 - the word of the field
        """Export the checkpoint, and compare the file with it.

        Args:
            format: One of the formats in docs/export.md.
            **options: Options of export.py with underscores for dashes, `imgsz=[640]`, `half=True`, `dynamic=True`.

        Returns:
            The file or folder.

        Raises:
            TypeError: An option is unknown; the message has the nearest names.
            UserError: The file could not be written, or its outputs differ from PyTorch.
        """
        given: dict[str, object] = {"weights": self.weights, "include": [format], **options}
        settings = to_settings(ExportSettings, to_namespace(export_parser(None), given))
        return export_checkpoints(settings, stop_at_error=True)[0]

    def _with_device(self, options: dict[str, object]) -> dict[str, object]:
        """Add the device of this object, unless the options name one or leave the choice open."""
        return {"device": self.device, **options} if self.device else options


def load(
    weights: str | Path | Sequence[str | Path], task: str | None = None, *, device: str = "", download: bool = False
) -> YOLO:
    """Load a model; see `YOLO`."""
    return YOLO(weights, task, device=device, download=download)
