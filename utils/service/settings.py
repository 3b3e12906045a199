"""What the service may be asked for, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.settings import MAX_IMAGE_PX


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
    max_batch: int = 8  # images that go through the network together
    max_wait_ms: float = 3.0  # how long the first of a batch waits for others
    max_body_mb: float = 16.0
    max_pixels: int = 50_000_000  # of one image
    max_images: int = 16  # of one request
    max_queue: int = 64  # images that wait
    timeout: float = 30.0  # seconds until a request is given up
    allow_urls: bool = False
    api_key: str = ""
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: from 0 to 1")
        lowest = {"max_det": 1, "max_batch": 1, "max_pixels": 1, "max_images": 1, "max_queue": 1, "max_wait_ms": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {low}")
        for name in ("max_body_mb", "timeout"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: from 0 to 65535")
        if self.imgsz and not 32 <= self.imgsz <= MAX_IMAGE_PX:
            raise UserError(f"--imgsz {self.imgsz}: from 32 to {MAX_IMAGE_PX}")

    @property
    def max_body_bytes(self) -> int:
        """Return the most bytes a request may have."""
        return int(self.max_body_mb * 2**20)


def model_name(path: str) -> str:
    """Return what a checkpoint is called in addresses: the name of its file, of a run's best.pt that of the run."""
    place = Path(path)
    own = place.stem not in ("best", "last")
    return place.stem if own or place.parent.name != "weights" else place.parent.parent.name
