"""Options of serve.py as a typed record, with their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.input_files import MAX_PIXELS
from utils.core.train_settings import MAX_IMAGE_PX


@dataclass(frozen=True)
class ServiceSettings:
    """Options of serve.py. The names are those of the options."""

    weights: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 5000
    device: str = ""
    half: bool = False
    imgsz: int = 0  # 0: from the checkpoint
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    max_batch: int = 4  # bounds memory; GPUs benefit from more
    max_wait_ms: float = 3.0
    max_body_mb: float = 16.0
    max_pixels: int = 50_000_000  # per image
    max_images: int = 16  # per request
    max_imgsz: int = 1280
    max_queue: int = 64  # images in progress, over all requests
    timeout: float = 30.0  # seconds
    allow_urls: bool = False
    api_key: str = ""
    download: bool = False

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "conf_thres": (0, 1),
            "iou_thres": (0, 1),
            "port": (0, 65535),
            "max_det": (1, 30000),
            "max_batch": (1, 1024),
            "max_wait_ms": (0, 60_000),
            "max_body_mb": (0.001, 4096),
            "max_pixels": (1, MAX_PIXELS),
            "max_images": (1, 1000),
            "max_imgsz": (32, MAX_IMAGE_PX),
            "max_queue": (1, 100_000),
            "timeout": (0.001, 86_400),
        }
        if self.imgsz:
            ranges["imgsz"] = (32, MAX_IMAGE_PX)
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also rejects NaN
                raise UserError(f"--{name.replace('_', '-')} expects a number from {low:g} to {high}, got {value}")
        if self.max_images > self.max_queue:
            raise UserError(f"--max-images {self.max_images} exceeds --max-queue {self.max_queue}; raise --max-queue")

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body in bytes."""
        return int(self.max_body_mb * 2**20)


def model_name(path: str) -> str:
    """Derive the name of a model from its file: the stem, or for best.pt and last.pt of a run the run's name."""
    file = Path(path)
    is_of_run = file.stem in ("best", "last") and file.parent.name == "weights"
    return file.parent.parent.name if is_of_run else file.stem
