"""Small untrained networks of every kind that find something all the same, and a picture for them."""

import cv2
import numpy as np
import torch

from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.datasets.images import decode_image
from utils.plots.palette import CITYSCAPES

NETWORKS = {  # description and class names; the checkpoint's name is the key
    "boxes": ("yolov5n", ("cat", "dog", "bus")),
    "masks": ("yolov5n-seg", ("cat", "dog")),
    "whole": ("yolov5n-cls", tuple("abcdefg")),
    "pixels": ("yolov5n-sem", tuple(CITYSCAPES)),
}


def write_networks(folder):
    """Write a checkpoint of a small untrained network of every kind; return their paths by name."""
    paths = {}
    for name, (architecture, classes) in NETWORKS.items():
        torch.manual_seed(0)
        network = build_network(read_architecture(architecture), len(classes), classes)
        _enliven(network, len(classes))
        paths[name] = folder / f"{name}.pt"
        save_checkpoint(paths[name], network, meta={"imgsz": 64})
    return paths


@torch.no_grad()
def _enliven(network, classes):
    """Give an untrained network masks that are not empty, and pixels of several classes."""
    for name, part in network.named_modules():
        if name.endswith("proto.cv3.conv"):
            part.weight *= 1e8  # what reaches it is as small as that
        if isinstance(part, torch.nn.Conv2d) and part.out_channels == classes == len(CITYSCAPES):
            pixels = torch.from_numpy(decode_image(picture(), "x")).permute(2, 0, 1)[None].float() / 255
            pixels = torch.nn.functional.interpolate(pixels, (64, 64))
            scores = network.eval().decode(network(pixels))["semantic"]["logits"]
            mean, spread = scores.mean((0, 2, 3)), scores.std((0, 2, 3))
            part.weight /= spread[:, None, None, None]
            part.bias.copy_((part.bias - mean) / spread)


def picture(seed=0, height=48, width=64, suffix=".png"):
    """Return the bytes of an image of coloured blocks."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))[1].tobytes()
