"""Entry points for `torch.hub.load`, which work from this folder without a network connection.

import torch
model = torch.hub.load("path/to/polyolo", "yolov5s", source="local")          (needs yolov5s.pt, or download=True)
model = torch.hub.load("path/to/polyolo", "custom", "runs/train/exp/weights/best.pt", source="local")
model("photo.jpg").print()

python hubconf.py --model yolov5n
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

for _name in ("models", "utils"):  # common names: imports would find the module of another project
    _paths = [Path(path).resolve() for path in getattr(sys.modules.get(_name), "__path__", [])]
    if _name in sys.modules and Path(__file__).resolve().parent / _name not in _paths:
        raise ImportError(
            f"another module named {_name!r} is already imported ({sys.modules[_name]}); load the network before it, "
            "or in a separate process"
        )

from utils.core.cli import add_device, add_download, new_parser, run_script  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml", "pydantic"]


def custom(
    path: Any = "best.pt", autoshape: bool = True, _verbose: bool = True, device: Any = None, download: bool = False
) -> Any:
    """Load a checkpoint or exported file, or several as an ensemble.

    Args:
        path: The file, or a list of files.
        autoshape: Return a model that takes images of any kind; else the network, an `nn.Module` that takes
            (B, 3, H, W) tensors and can be trained.
        _verbose: Log what was loaded.
        device: As --device of the programs; None: the first GPU, else the CPU.
        download: Fetch official weights that are missing.
    """
    from utils.hub.entry_points import open_custom

    return open_custom(path, autoshape, _verbose, device, download)


def _create_entry(name: str) -> Callable[..., Any]:
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
        f"Create {name}. `pretrained` loads {name}.pt, which must exist unless `download` is set; with other "
        "`channels` or `classes` only weights of equal shape are loaded."
    )
    return entry


yolov5n, yolov5s, yolov5m, yolov5l, yolov5x = (_create_entry(f"yolov5{scale}") for scale in "nsmlx")
yolov5n6, yolov5s6, yolov5m6, yolov5l6, yolov5x6 = (_create_entry(f"yolov5{scale}6") for scale in "nsmlx")


def __dir__() -> list[str]:
    """List the entry points for `torch.hub.list`."""
    return ["custom", *(f"yolov5{scale}{suffix}" for suffix in ("", "6") for scale in "nsmlx")]


def build_parser() -> argparse.ArgumentParser:
    """Create the parser of the self-test."""
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="yolov5s", metavar="NAME", help="entry point of this file, or a checkpoint")
    parser.add_argument("--source", nargs="+", default=[], help="images (default: generated ones of all types)")
    add_device(parser)
    add_download(parser)
    return parser


def main() -> None:
    """Load a model, run it on images of all supported types and print the results."""
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
