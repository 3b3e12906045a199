"""What the service may be asked for, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.train_settings import MAX_IMAGE_PX
from utils.datasets.image_files import MAX_PIXELS


@dataclass(frozen=True)
class ServiceSettings:
    """The options of serve.py; names are the options' (dashes become underscores)."""

    weights: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 5000
    device: str = ""
    half: bool = False
    imgsz: int = 0  # 0: what the checkpoint was trained at
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    max_batch: int = 4  # images that go through the network together, which bounds memory; GPUs gain by more
    max_wait_ms: float = 3.0  # how long the first of a batch waits for others
    max_body_mb: float = 16.0
    max_pixels: int = 50_000_000  # of one image
    max_images: int = 16  # of one request
    max_imgsz: int = 1280  # that a request may ask for
    max_queue: int = 64  # images in work, over all requests
    timeout: float = 30.0  # seconds until a request is given up
    level_memory: bool = False  # give every large block back at once
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
            if not low <= value <= high:  # so that no-number is refused too
                raise UserError(f"--{name.replace('_', '-')} {value}: from {low:g} to {high}")
        if self.max_images > self.max_queue:
            raise UserError(f"--max-images {self.max_images}: more than --max-queue {self.max_queue} are never served")

    @property
    def max_body_bytes(self) -> int:
        """Return the most bytes a request may have."""
        return int(self.max_body_mb * 2**20)


def model_name(path: str) -> str:
    """Return what a checkpoint is called in addresses: the name of its file, of a run's best.pt that of the run."""
    place = Path(path)
    own = place.stem not in ("best", "last")
    return place.stem if own or place.parent.name != "weights" else place.parent.parent.name
