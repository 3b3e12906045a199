"""Convert labels and checkpoints, and divide images into splits.

    python convert.py labels --from voc --to yolo --source VOCdevkit/VOC2007 --out voc-yolo
    python convert.py labels --from yolo --to coco --source data/animals.yaml --out animals-coco
    python convert.py labels --from labelme --to masks --source photos --names names.txt --out photo-masks
    python convert.py labels --from cityscapes --to yolo --source cityscapes --out cityscapes-yolo
    python convert.py split --source data/animals.yaml --shares 0.8 0.1 0.1 --out animals-split
    python convert.py checkpoint --weights yolov5n.pt --out yolov5n.safetensors

Sources are never changed, and nothing is overwritten without --exist-ok. The work is done by tools/converters.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.converters.convert_settings import (
    FROM,
    IMAGES,
    SHAPES,
    STRATIFY,
    STYLES,
    TO,
    CheckpointSettings,
    LabelSettings,
    SplitSettings,
)
from utils.core.cli import add_subparser, new_parser, run_script


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="labels | split | checkpoint")
    _add_labels(add_subparser(commands, "labels", "labels from one format to another"))
    _add_split(add_subparser(commands, "split", "lists of training, validation and test images"))
    _add_checkpoint(add_subparser(commands, "checkpoint", "weights from one file format to another"))
    return parser


def _add_labels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--from", dest="source_format", required=True, choices=FROM, help="format of the source")
    add("--to", dest="target_format", required=True, choices=TO, help="format to write")
    add("--source", required=True, type=Path, help="data YAML, folder, or the one file of the format")
    _add_output(parser, "new folder for the result")
    add("--names", default="", help="class names: a file with one a line, a data YAML, or a,b,c; empty: the source's")
    add("--split", default="train", help="what images are called whose source has no splits")
    add("--pictures", default="", help="folder of the images; empty: the usual places")
    add("--masks", default="", help="folder of the masks of the formats masks and panoptic; empty: the usual places")
    add("--images", choices=IMAGES, default="copy", help="what to do with the images")
    add("--style", choices=STYLES, default="auto", help="boxes or polygons; auto: polygons where all objects have one")
    add("--decimals", type=int, default=None, help="of the numbers written; empty: 6 for yolo, 2 for pixels")
    add("--least-px", type=int, default=0, help="leave out objects of a smaller area in pixels")
    add("--background", type=int, default=None, help="value of unlabelled pixels in masks; empty: _background_ or 255")
    add("--only", choices=SHAPES, default="all", help="kind of LabelMe shapes to convert")
    add("--shift-centre", action="store_true", help="move Cityscapes boxes by -1 pixel as multiyolov5 does")


def _add_split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", required=True, type=Path, help="data YAML or folder of images")
    _add_output(parser, "new folder for the lists and their data YAML")
    add("--shares", type=float, nargs="+", default=[0.8, 0.2], help="of train, val and, if there are three, test")
    add("--seed", type=int, default=0, help="the same seed gives the same lists")
    add("--stratify", choices=STRATIFY, default="labels", help="what all lists get the same shares of")
    add("--group", default="", help="regular expression on paths; images with the same match stay together")
    add("--format", default="auto", help="label format of a folder")
    add("--names", default="", help="class names of a folder: a file with one a line, a data YAML, or a,b,c")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, type=Path, help="official or native checkpoint")
    _add_output(parser, "new file: .pt, or .safetensors for weights alone")
    parser.add_argument("--half", action="store_true", help="store weights in fp16")


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--out", required=True, type=Path, help=text)
    parser.add_argument("--exist-ok", action="store_true", help="write although it exists, replacing files")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, say what would be")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "labels":
        from tools.converters.labels import convert_labels

        convert_labels(LabelSettings(**options))
    elif command == "split":
        from tools.converters.split import split_images

        options["source_format"] = options.pop("format")
        split_images(SplitSettings(**options | {"shares": tuple(options["shares"])}))
    else:
        from tools.converters.checkpoint import convert_checkpoint

        convert_checkpoint(CheckpointSettings(source=options.pop("weights"), **options))


if __name__ == "__main__":
    run_script(main)
