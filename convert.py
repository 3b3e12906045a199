"""Convert labels and checkpoints, divide images into splits, and pack data sets into tar shards.

    python convert.py labels --from voc --to yolo --source VOCdevkit/VOC2007 --out voc-yolo
    python convert.py labels --from yolo --to coco --source data/animals.yaml --out animals-coco
    python convert.py labels --from labelme --to masks --source photos --names names.txt --out photo-masks
    python convert.py labels --from cityscapes --to yolo --source cityscapes --out cityscapes-yolo
    python convert.py split --source data/animals.yaml --shares 0.8 0.1 0.1 --out animals-split
    python convert.py shards --source data/animals.yaml --out animals-shards --shard-mb 500
    python convert.py checkpoint --weights yolov5n.pt --out yolov5n.safetensors

Sources are never changed, and nothing is overwritten without --exist-ok.
"""

import argparse
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tools.converters import sources, targets
from tools.converters.convert_settings import (
    IMAGES,
    SHAPES,
    STRATIFY,
    STYLES,
    CheckpointSettings,
    LabelSettings,
    ShardSettings,
    SplitSettings,
)
from utils.core.cli import add_flag, add_subparser, new_parser, run_script


def build_parser() -> argparse.ArgumentParser:
    """Build the command-line parser of this program."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="labels | split | shards | checkpoint")
    _add_labels(add_subparser(commands, "labels", "Convert labels from one format to another."))
    _add_split(add_subparser(commands, "split", "Write lists of training, validation and test images."))
    _add_shards(add_subparser(commands, "shards", "Pack a data set into tar files, which training reads in place."))
    _add_checkpoint(add_subparser(commands, "checkpoint", "Convert a checkpoint from one file format to another."))
    return parser


def format_names(package: ModuleType) -> list[str]:
    """List the formats of a registry by its files, because importing them would load OpenCV and numpy."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _add_labels(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    known = format_names(sources)
    data.add_argument("--from", dest="source_format", required=True, choices=known, help="format of the source")
    known = format_names(targets)
    data.add_argument("--to", dest="target_format", required=True, choices=known, help="format to write")
    data.add_argument("--source", required=True, type=Path, help="data YAML, folder, or single file of the format")
    text = "class names: a file with one name per line, a data YAML, or a,b,c (default: from the source)"
    data.add_argument("--names", default="", help=text)
    data.add_argument("--split", default="train", help="split of the images of a source without splits")
    data.add_argument("--pictures", default="", metavar="FOLDER", help="folder of the images (default: detected)")
    text = "folder of the masks of the formats masks and panoptic (default: detected)"
    data.add_argument("--masks", default="", metavar="FOLDER", help=text)
    _add_output(parser, "new folder for the converted data set")

    conversion = parser.add_argument_group("conversion")
    conversion.add_argument("--images", choices=IMAGES, default="copy", help="copy images, link them, or leave them")
    text = "write boxes or polygons; auto: polygons for images whose objects all have one"
    conversion.add_argument("--style", choices=STYLES, default="auto", help=text)
    text = "decimal places of coordinates (default: 6 for yolo, 2 for pixels)"
    conversion.add_argument("--decimals", type=int, default=None, metavar="N", help=text)
    conversion.add_argument("--least-px", type=int, default=0, metavar="N", help="minimum area of objects in pixels")
    text = "value of unlabelled pixels in masks (default: that of the class _background_, else 255)"
    conversion.add_argument("--background", type=int, default=None, metavar="N", help=text)
    conversion.add_argument("--only", choices=SHAPES, default="all", help="kind of LabelMe shapes to convert")
    add_flag(conversion, "--shift-centre", "move Cityscapes boxes by -1 pixel, like multiyolov5's converter")


def _add_split(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--source", required=True, type=Path, help="data YAML or folder of images")
    data.add_argument("--format", default="auto", help="label format of a folder")
    text = "class names of a folder: a file with one name per line, a data YAML, or a,b,c (default: from the folder)"
    data.add_argument("--names", default="", help=text)
    _add_output(parser, "new folder for the lists and their data YAML")

    split = parser.add_argument_group("split")
    text = "relative sizes of train, val and, optionally, test"
    split.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.2], metavar="X", help=text)
    split.add_argument("--seed", type=int, default=0, help="random seed; equal seeds give equal lists")
    text = "what to distribute evenly: labels by class, images by folder, or nothing"
    split.add_argument("--stratify", choices=STRATIFY, default="labels", help=text)
    text = "regular expression on paths; images with the same match stay in one split (default: no groups)"
    split.add_argument("--group", default="", metavar="REGEX", help=text)


def _add_shards(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--source", required=True, type=Path, help="data YAML or folder, as for --data of train.py")
    output = parser.add_argument_group("output")
    text = "folder for the shards and their data YAML; an interrupted conversion to it goes on"
    output.add_argument("--out", required=True, type=Path, help=text)
    text = "size at which a new tar file begins, in megabytes"
    output.add_argument("--shard-mb", type=float, default=500.0, metavar="N", help=text)
    add_flag(output, "--exist-ok", "allow an existing --out and replace files in it")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--weights", required=True, type=Path, help="official or native checkpoint")
    _add_output(parser, "new file: .pt, or .safetensors for the weights alone")
    add_flag(parser.add_argument_group("conversion"), "--half", "store weights in fp16")


def _add_output(parser: argparse.ArgumentParser, text: str) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, help=text)
    add_flag(output, "--exist-ok", "allow an existing --out and replace files in it")
    add_flag(output, "--dry-run", "report what would be written without writing")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    if command == "labels":
        from tools.converters.labels import convert_labels

        convert_labels(LabelSettings(**options))
    elif command == "split":
        from tools.converters.split import split_images

        options["source_format"] = options.pop("format")
        split_images(SplitSettings(**options | {"shares": tuple(options["shares"])}))
    elif command == "shards":
        from tools.converters.shards import write_shards

        write_shards(ShardSettings(**options))
    else:
        from tools.converters.checkpoint import convert_checkpoint

        convert_checkpoint(CheckpointSettings(source=options.pop("weights"), **options))


if __name__ == "__main__":
    run_script(main)
