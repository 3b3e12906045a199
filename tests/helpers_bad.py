"""For tests of bad inputs: a small data set to spoil, a small network, a script that must end with one line."""

import importlib

import cv2
import numpy as np
import pytest

from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.core.cli import explicit_options
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.yaml_file import write_yaml

TINY = ("--cfg", "yolov5n", "--img", "64", "--batch", "4", "--workers", "0", "--epochs", "1", "--noplots")


def shows(name):
    """Tell whether a script takes a source in place of a data set."""
    return name.endswith(("detect", "predict"))


def error_of(name, *options, project):
    """Run a script in this process; return the message of the UserError it must end with. Nothing may be left."""
    module = importlib.import_module(name)
    line = [str(option) for option in (*options, *(() if "--project" in options else ("--project", project)))]
    with pytest.raises(UserError) as caught:
        if shows(name):
            module.main(module.build_parser().parse_args(line))
        else:
            module.run(**explicit_options(module.build_parser(), line))
    assert not project.exists() or not list(project.rglob("*")), "something was left behind"
    text = str(caught.value)
    assert "\n" not in text, text
    return text


def image_set(folder):
    """Write eight labelled noise images of two classes for training and for validation; return the data YAML."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "images" / split / f"{i}.jpg"), pixels)
            (folder / "labels" / split / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.3 0.3\n")
    write_yaml(folder / "data.yaml", {"train": "images/train", "val": "images/val", "names": ["a", "b"]})
    return folder / "data.yaml"


def two_class_network(path):
    """Write a checkpoint of a small untrained network with two classes; return its path."""
    save_checkpoint(path, build_network(read_architecture("yolov5n"), 2, ("a", "b")), meta={"imgsz": 64})
    return path


def options_for(name, weights, images):
    """Return options that would work if the weights did."""
    if shows(name):
        return ("--weights", weights, "--source", load_data(str(images)).split("val")[0], "--img", 64)
    return ("--weights", weights, "--data", images, "--img", 64, "--workers", 0)
