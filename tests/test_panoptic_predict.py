"""Panoptic maps of segment/predict.py: files, drawings and refused networks."""

import importlib
import json

import cv2
import numpy as np
import pytest
import torch
from helpers_export import detecting_network

from models.add_semantic_head import with_semantic_head
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.core.contracts import Frame, Geometry, ImageInfo, Results
from utils.core.errors import UserError
from utils.core.segment_types import MergeSettings
from utils.ops.panoptic import PanopticMerger, decode_ids
from utils.plots.panoptic_sink import PanopticSink, draw_panoptic
from utils.plots.semantic_style import SemanticStyle

THINGS, CATEGORIES = ("dog", "cat"), ("cat", "sky", "dog", "road")
STYLE = SemanticStyle(CATEGORIES)


class Masks:
    """Two instances: a square, and a larger one that it covers in part."""

    def __len__(self):
        return 2

    def cpu(self):
        return self

    def original(self, row):
        mask = np.zeros((60, 100), bool)
        mask[10:40, 10:40] = row == 0
        mask[10:50, 20:80] |= row == 1
        return mask


def results():
    semantic = torch.full((60, 100), 1, dtype=torch.uint8)
    semantic[40:] = 3
    info = ImageInfo(0, "/a/street.jpg", Geometry((60, 100), (64, 128)))
    scores = torch.tensor([0.9, 0.7])
    return Results(info, torch.zeros(2, 4), scores, torch.tensor([0, 1]), fine_masks=Masks(), semantic=semantic)


def merger(**settings):
    return PanopticMerger(THINGS, CATEGORIES, MergeSettings(**settings))


def test_classes_are_matched_by_name():
    found = merger(min_stuff_area=100)(results())
    assert [CATEGORIES[segment.category] for segment in found.segments] == ["dog", "cat", "sky", "road"]
    assert [segment.is_thing for segment in found.segments] == [True, True, False, False]
    with pytest.raises(UserError, match="no class 'bird'"):
        PanopticMerger(("dog", "bird"), CATEGORIES)
    with pytest.raises(ValueError, match=r"street\.jpg: panoptic maps need instance masks"):
        merger()(Results(results().info, semantic=torch.zeros((60, 100), dtype=torch.uint8)))


def test_sink_writes_the_format_of_coco(tmp_path):
    image = np.full((60, 100, 3), 90, np.uint8)
    sink = PanopticSink(tmp_path, merger(min_stuff_area=100), STYLE)
    sink.write(Frame(image, "/a/street.jpg", ""), results(), lambda: image)
    assert "1 panoptic map in" in sink.close()
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["categories"][1] == {"id": 2, "name": "sky", "isthing": 0}
    assert content["images"] == [{"id": 1, "file_name": "street.jpg", "height": 60, "width": 100}]
    (annotation,) = content["annotations"]
    ids = decode_ids(cv2.imread(str(tmp_path / "panoptic" / annotation["file_name"])))
    assert sorted(np.unique(ids)) == [entry["id"] for entry in annotation["segments_info"]]
    for entry in annotation["segments_info"]:
        x, y, width, height = entry["bbox"]
        mask = ids == entry["id"]
        assert entry["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
        assert ("score" in entry) == (entry["category_id"] in (1, 3))
    assert cv2.imread(str(tmp_path / "panoptic_colour" / "street.png")).shape == image.shape
    assert PanopticSink(tmp_path / "none", merger(), STYLE).close() == ""


def test_drawing_leaves_void_unchanged():
    image = np.full((60, 100, 3), 90, np.uint8)
    panoptic = merger(min_stuff_area=1500)(results())  # the road is too small
    drawn = draw_panoptic(image, panoptic, SemanticStyle(CATEGORIES, legend=False))
    assert (drawn[55:, 5:] == 90).all() and (drawn[2, :90] != 90).any()
    assert not (drawn[20, 15] == drawn[20, 70]).all()  # two things, two colours


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A checkpoint with masks and semantic maps."""
    torch.manual_seed(0)
    names = ("ant", "bee", "cat")
    architecture = with_semantic_head(read_architecture("yolov5n-seg"), "base", 4, (*names, "ground"))
    network = build_network(architecture, 3, names).eval()
    path = tmp_path_factory.mktemp("joint") / "joint.pt"
    save_checkpoint(path, network, meta={"imgsz": 64})
    return path


def predict(weights, folder, **options):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "scene.png"), image)
    program = importlib.import_module("segment.predict")
    program.run(weights=[str(weights)], source=str(folder / "scene.png"), project=str(folder), name="run", **options)
    return folder / "run"


def test_program_writes_panoptic_maps(joint, tmp_path):
    folder = predict(joint, tmp_path, save_panoptic=True, min_stuff_area=0, nosave=True)
    content = json.loads((folder / "panoptic.json").read_text())
    assert [category["isthing"] for category in content["categories"]] == [1, 1, 1, 0]
    assert decode_ids(cv2.imread(str(folder / "panoptic" / "scene.png"))).shape == (50, 70)


def test_options_without_panoptic_maps_warn(joint, tmp_path, caplog):
    predict(joint, tmp_path, min_stuff_area=5, nosave=True)
    assert "--min-stuff-area is ignored: panoptic maps need --save-panoptic" in caplog.text
    assert "--panoptic-conf" not in caplog.text


def test_program_refuses_networks_without_both_heads(tmp_path):
    save_checkpoint(tmp_path / "masks.pt", detecting_network("yolov5n-seg"), meta={"imgsz": 64})
    with pytest.raises(UserError, match="needs a mask head and a semantic head"):
        predict(tmp_path / "masks.pt", tmp_path, save_panoptic=True)
    for option, value in (("panoptic_conf", 2), ("panoptic_overlap", -1), ("min_stuff_area", -1)):
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')} expects"):
            predict(tmp_path / "masks.pt", tmp_path, **{option: value})
