"""Networks for `torch.hub.load`, from this folder and without a network connection.

import torch
model = torch.hub.load("path/to/polyolo", "yolov5s", source="local")          (needs yolov5s.pt, or download=True)
model = torch.hub.load("path/to/polyolo", "custom", "runs/train/exp/weights/best.pt", source="local")
model("photo.jpg").print()

python hubconf.py --model yolov5n
"""

import argparse
import sys
from pathlib import Path
from typing import Any

for _name in ("models", "utils"):  # common names: whose package was imported first would be asked for our modules
    _places = [Path(place).resolve() for place in getattr(sys.modules.get(_name), "__path__", [])]
    if _name in sys.modules and Path(__file__).resolve().parent / _name not in _places:
        raise ImportError(
            f"another module named {_name!r} has been imported already ({sys.modules[_name]}); load the network before "
            "it, or in a process of its own"
        )

from utils.core.cli import add_device, add_download, new_parser, run_script  # noqa: E402

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml", "pydantic"]


def custom(
    path: Any = "best.pt", autoshape: bool = True, _verbose: bool = True, device: Any = None, download: bool = False
) -> Any:
    """Return the checkpoint or exported file `path` (several: an ensemble) as a callable model.

    Without `autoshape` it is the network itself: an nn.Module that takes (B, 3, H, W) tensors and can be trained.
    """
    from utils.hub.entry_points import open_custom

    return open_custom(path, autoshape, _verbose, device, download)


def _entry(name: str) -> Any:
    def entry(
        pretrained: bool = True,
        channels: int = 3,
        classes: int = 80,
        autoshape: bool = True,
        _verbose: bool = True,
        device: Any = None,
        download: bool = False,
    ) -> Any:
        from utils.hub.entry_points import open_named

        return open_named(
            name, pretrained, channels, classes, autoshape=autoshape, verbose=_verbose, device=device, download=download
        )

    entry.__name__ = name
    entry.__doc__ = (
        f"Return {name}. `pretrained` reads {name}.pt, which must be here unless `download`; other `channels` or "
        "`classes` than its own take over the weights that fit."
    )
    return entry


yolov5n, yolov5s, yolov5m, yolov5l, yolov5x = (_entry(f"yolov5{scale}") for scale in "nsmlx")
yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6 = (_entry(f"yolov5{scale}6") for scale in "nsmlx")


def __dir__() -> list[str]:
    """Return the entries: what `torch.hub.list` shows."""
    return ["custom", *(f"yolov5{scale}{more}" for more in ("", "6") for scale in "nsmlx")]


def build_parser() -> argparse.ArgumentParser:
    """Return the options of the self-test."""
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="yolov5s", help="an entry of this file, or a checkpoint")
    parser.add_argument("--source", nargs="+", default=[], help="images; none: one that is made here")
    add_device(parser)
    add_download(parser)
    return parser


def main() -> None:
    """Load a model, run it on images of every kind, print what it found."""
    from utils.hub.entry_points import self_test

    options = build_parser().parse_args()
    entry = globals().get(options.model)
    model = (
        entry(device=options.device, download=options.download)
        if callable(entry) and options.model.startswith("yolov5")
        else custom(options.model, device=options.device, download=options.download)
    )
    self_test(model, options.source)


if __name__ == "__main__":
    run_script(main)
