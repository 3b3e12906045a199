"""Files of detect.py --submit for Cityscapes, scored here, against the score of val.py for the same network."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

import detect
import val
from models.add_semantic_head import with_semantic_head
from models.builder import build_network
from models.checkpoint import save_checkpoint
from utils.core.cityscapes import NAMES
from utils.core.yaml_file import write_yaml

# the ids that Cityscapes' own evaluation uses; it ignores all others
SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LONG_PX = 256


def made_tree(root: Path) -> Path:
    """Write two frames like Cityscapes': blocks whose shades tell their ids, ids without a class among them."""
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (34, 3), dtype=np.uint8)
    for city, number in (("ulm", 1), ("bonn", 2)):
        ids = rng.choice((0, 4, 7, 8, 11, 21, 23, 26), (4, 8)).astype(np.uint8)
        ids = cv2.resize(ids, (256, 128), interpolation=cv2.INTER_NEAREST)
        for tree, name, pixels in (
            ("leftImg8bit", "leftImg8bit", shades[ids]),
            ("gtFine", "gtFine_labelIds", ids),
            ("gtFine", "gtFine_instanceIds", ids.astype(np.uint16) * 1000),
        ):
            folder = root / tree / "val" / city
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{city}_000000_{number:06d}_{name}.png"), pixels)
    return root


def overfitted(tree: Path, path: Path) -> Path:
    """Write a checkpoint of a psp head that has seen the frames of a tree a few times: right in places only."""
    torch.manual_seed(0)
    network = build_network(with_semantic_head("yolov5n", "psp", names=NAMES, alone=True))
    images, maps = [], []
    for file in sorted(tree.rglob("*_leftImg8bit.png")):
        truth = str(file).replace("leftImg8bit", "gtFine").replace("_gtFine.png", "_gtFine_labelIds.png")
        images.append(torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()).permute(2, 0, 1) / 255)
        ids = cv2.imread(truth, cv2.IMREAD_UNCHANGED)
        maps.append(torch.from_numpy(np.vectorize(lambda i: SCORED.index(i) if i in SCORED else 255)(ids)))
    batch, labels = torch.stack(images), torch.stack(maps).long()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # a few steps must do for the statistics, too
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    network.train()
    for _ in range(80 // len(batch)):
        logits = network(batch)["semantic"]["logits"]
        full = interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
        optimizer.zero_grad()
        cross_entropy(full, labels, ignore_index=255).backward()
        optimizer.step()
    save_checkpoint(path, network.eval(), meta={"imgsz": batch.shape[-1]})
    return path


def scored_by_hand(tree: Path, written: Path) -> dict[str, float]:
    """Return the IoU of each class that occurs, from files alone: gtFine's ids and those written."""
    inter, union = dict.fromkeys(SCORED, 0), dict.fromkeys(SCORED, 0)
    for truth in sorted(tree.rglob("*_gtFine_labelIds.png")):
        true = cv2.imread(str(truth), cv2.IMREAD_UNCHANGED)
        stem = truth.name.removesuffix("_gtFine_labelIds.png")
        said = cv2.imread(str(written / f"{stem}_leftImg8bit_pred.png"), cv2.IMREAD_UNCHANGED)
        assert said.dtype == np.uint8 and said.shape == true.shape and np.isin(said, SCORED).all()
        known = np.isin(true, SCORED)
        for label in SCORED:
            inter[label] += int(((true == label) & (said == label)).sum())
            union[label] += int((known & ((true == label) | (said == label))).sum())
    names = dict(zip(SCORED, NAMES, strict=True))
    return {names[label]: inter[label] / union[label] for label in SCORED if union[label]}


@pytest.fixture(params=["made", "real"])
def street(request, tmp_path):
    """A tree like Cityscapes' with frames of 256 x 128 pixels, so that both programs show them to the network alike."""
    if request.param == "made":
        return made_tree(tmp_path / "city")
    tree = request.getfixturevalue("shared") / "datasets" / "cityscapes_sample"
    if not tree.is_dir():
        pytest.skip(f"no Cityscapes frame at {tree}")
    return tree


def test_submission_matches_val_score(street, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("polyolo"), "propagate", True)
    caplog.set_level(logging.INFO, logger="polyolo")
    best = overfitted(street, tmp_path / "street.pt")
    write_yaml(tmp_path / "street.yaml", {"path": str(street), "segval": str(street), "segtrain": str(street)})
    options = {"weights": [str(best)], "project": str(tmp_path), "device": "cpu", "imgsz": [LONG_PX]}
    val.run(
        **options, data=str(tmp_path / "street.yaml"), segdata=str(street), base_size=LONG_PX, workers=0,
        noplots=True, name="val",
    )  # fmt: skip
    source = str(street / "leftImg8bit" / "val" / "*" / "*.png")
    detect.run(**options, source=source, submit=True, nosave=True, name="detect")
    overlaps = scored_by_hand(street, tmp_path / "detect" / "results")
    printed = json.loads((tmp_path / "val" / "results.json").read_text())
    classes = {name.removeprefix("semantic/iou/"): value for name, value in printed.items() if "/iou/" in name}
    assert classes == pytest.approx(overlaps, rel=1e-12)
    assert printed["semantic/miou"] == pytest.approx(sum(overlaps.values()) / len(overlaps), rel=1e-12)
    assert printed["semantic/miou_absent_zero"] == pytest.approx(sum(overlaps.values()) / 19, rel=1e-12)
    assert sum(0 < overlap < 1 for overlap in overlaps.values()) >= 3  # neither nothing nor everything is right
    absent_zero = f"{printed['semantic/miou_absent_zero']:.4f} with absent classes counted as 0"
    assert f"mean IoU {printed['semantic/miou']:.4f}, {absent_zero}" in caplog.text
