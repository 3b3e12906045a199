"""Panoptic maps of exported files and of the Python interface."""

import base64

import cv2
import numpy as np
import pytest
import torch
from helpers_export import detecting_network, needs, written

import hubconf
from models.architecture import read_architecture
from models.checkpoint import save_checkpoint
from segment import predict
from utils.ops.panoptic import decode_ids

THINGS, CATEGORIES = ("ant", "bee", "cat"), ("ant", "bee", "cat", "sky", "road")
SIDE = 96


@pytest.fixture(scope="module", params=["yolov5n-pan", "polyolo-n-pan"])
def folder(tmp_path_factory, request):
    """A panoptic network whose maps have things and stuff, and four images."""
    root = tmp_path_factory.mktemp("panoptic")
    description = {**read_architecture(request.param), "n_segcls": 5, "head_names": {"semantic": list(CATEGORIES)}}
    network = detecting_network(description, THINGS, spread=1.0)
    with torch.no_grad():
        for bias in (p for p in network.heads["semantic"].parameters() if p.shape == (5,)):
            bias[3:] += 1  # more of the stuff
    save_checkpoint(root / "pan.pt", network, {"imgsz": SIDE, "task": "segment"})
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(4):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        cv2.imwrite(str(root / "images" / f"{number}.png"), cv2.resize(coarse, (90, 70 + 5 * number)))
    return root


def id_maps(root, weights, name):
    predict.run(
        weights=[str(weights)], source=str(root / "images"), imgsz=[SIDE], conf_thres=0.3, panoptic_conf=0.4,
        min_stuff_area=50, save_panoptic=True, nosave=True, device="cpu", project=str(root / "runs"), name=name,
        exist_ok=True,
    )  # fmt: skip
    files = sorted((root / "runs" / name / "panoptic").glob("*.png"))
    return [decode_ids(cv2.imread(str(file))) for file in files]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_exported_files_give_the_same_panoptic_maps(folder, kind):
    needs(kind)
    path, _ = written(folder / "pan.pt", folder / "exports", kind)
    own, exported = id_maps(folder, folder / "pan.pt", "own"), id_maps(folder, path, kind)
    assert len(own) == len(exported) == 4
    assert sum(len(np.unique(ids)) for ids in own) > 6, "the maps are too uniform to compare"
    same = sum(int((a == b).sum()) for a, b in zip(own, exported, strict=True))
    assert same >= 0.999 * sum(ids.size for ids in own)


def test_python_results_have_a_panoptic_map(folder):
    model = hubconf.custom(str(folder / "pan.pt"), _verbose=False, device="cpu")
    model.conf = 0.3
    found = model(str(folder / "images" / "0.png"), size=SIDE)
    panoptic = found.panoptic
    assert panoptic.ids.shape == (70, 90) and panoptic is found.panoptic is found.results[0].panoptic
    for segment in panoptic.segments:
        assert (panoptic.ids == segment.id).sum() == segment.area
        assert segment.is_thing == (segment.category < 3)


def test_networks_without_masks_have_no_panoptic_map(tmp_path, folder):
    save_checkpoint(tmp_path / "a.pt", detecting_network("yolov5n"), {"imgsz": SIDE})
    model = hubconf.custom(str(tmp_path / "a.pt"), _verbose=False, device="cpu")
    assert model(str(folder / "images" / "0.png"), size=SIDE).panoptic is None


def answered(folder, **parameters):
    from helpers_serve import form, serving

    data = (folder / "images" / "1.png").read_bytes()
    with serving([folder / "pan.pt"], max_images=4) as client:
        answer = client.post("/v1/predict", params={"conf": 0.3, **parameters}, files=form(data))
    assert answer.status_code == 200, answer.text
    return answer.json()["images"][0]


def test_the_service_answers_with_a_panoptic_map_on_request(folder):
    pytest.importorskip("fastapi")
    image = answered(folder, panoptic=True)
    ids = decode_ids(cv2.imdecode(np.frombuffer(base64.b64decode(image["panoptic"]["png"]), np.uint8), 1))
    assert ids.shape == (image["height"], image["width"])
    for segment in image["panoptic"]["segments"]:
        assert (ids == segment["id"]).sum() == segment["area"] > 0
        assert segment["name"] == CATEGORIES[segment["class"]] and segment["thing"] == (segment["class"] < 3)
        assert ("confidence" in segment) == segment["thing"]
    assert "panoptic" not in answered(folder)
