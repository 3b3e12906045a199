"""Create small untrained networks of every kind that still predict something, and images for them."""

import cv2
import numpy as np
import torch

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.heads.anchor_head import BoxHead
from utils.datasets.image_files import decode_image
from utils.plots.palette import CITYSCAPES

NETWORKS = {  # description and class names; the checkpoint's name is the key
    "boxes": ("yolov5n", ("cat", "dog", "bus")),
    "masks": ("yolov5n-seg", ("cat", "dog")),
    "whole": ("yolov5n-cls", tuple("abcdefg")),
    "pixels": ("yolov5n-sem", tuple(CITYSCAPES)),
}


def randomize_batchnorm(network, seed=0):
    """Give all BatchNorm layers random statistics, scales and biases, and return the network in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
    return network.eval()


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
            _spread(part, network.eval().decode(network(_pixels()))["semantic"]["logits"])


def _pixels():
    pixels = torch.from_numpy(decode_image(encoded_image(), "x")).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(pixels, (64, 64))


def _spread(part, scores):
    """Change a convolution so that its outputs, these `scores`, have mean 0 and spread 1 in each channel."""
    mean, spread = scores.mean((0, 2, 3)), scores.std((0, 2, 3))
    part.weight /= spread[:, None, None, None]
    part.bias.copy_((part.bias - mean) / spread)


@torch.no_grad()
def make_sure(path):
    """Let an untrained network of a checkpoint find boxes of all confidences, where it was not sure of any."""
    loaded = load_checkpoint(path)
    for head in loaded.network.modules():
        if isinstance(head, BoxHead):
            for part in head.m:
                hook = part.register_forward_hook(lambda part, _, scores: _spread(part, scores))
                loaded.network(_pixels())
                hook.remove()
    save_checkpoint(path, loaded.network, meta=loaded.meta)


def encoded_image(seed=0, height=48, width=64, suffix=".png"):
    """Return the bytes of an image of coloured blocks."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))[1].tobytes()
