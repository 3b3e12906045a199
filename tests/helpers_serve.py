"""For tests of the service: small networks behind it, pictures to send, requests driven by hand."""

import asyncio
import io
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from starlette.testclient import TestClient

from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.datasets.images import decode_image
from utils.plots.palette import CITYSCAPES
from utils.service.app import build_app
from utils.service.predictor import Predictor
from utils.service.settings import ServiceSettings

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


def form(*pictures, name="image"):
    """Return pictures as the files of a form."""
    return [(name, (f"{i}.png", io.BytesIO(data), "image/png")) for i, data in enumerate(pictures)]


@contextmanager
def serving(weights, change=None, **settings):
    """Yield a client of a service; `change` gets its predictor before it starts."""
    settings = ServiceSettings(weights=tuple(map(str, weights)), device="cpu", **{"conf_thres": 0.0, **settings})
    predictor = Predictor(settings)
    if change is not None:
        change(predictor)
    app = build_app(settings, predictor)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def driven(app, messages, path="/v1/predict", content_type=b"image/png"):
    """Send one request by hand, `messages` being what the server receives; return status of the answer.

    A message may be a number: the client waits so many seconds.
    """
    sent = []

    async def run():
        left = list(messages)

        async def receive():
            while left and not isinstance(left[0], dict):
                await asyncio.sleep(left.pop(0))
            if left:
                return left.pop(0)
            return await asyncio.Event().wait()  # nothing ever comes again

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", content_type)]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("t", 80), "client": ("c", 1)}
        async with app.router.lifespan_context(app):
            await app({**scope, "root_path": "", "asgi": {"version": "3.0"}}, receive, send)

    asyncio.run(run())
    return next(message["status"] for message in sent if message["type"] == "http.response.start")
