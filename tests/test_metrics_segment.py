"""COCO's numbers for masks, against pycocotools on the same masks."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch

from utils.core.contracts import Batch, EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.core.val_settings import ValSettings
from utils.engine.validate import _batch_size
from utils.metrics import EVALUATORS

SIZE = 96
SPEC = HeadSpec("segment", 2, num_masks=4)


class Drawn:
    """Masks that are simply there; satisfies `contracts.FineMasks` where the original has the network's size."""

    def __init__(self, masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def network(self, rows):
        return self.masks[rows]

    def original(self, row):
        return self.masks[row].numpy()


def discs(places):
    masks = np.zeros((len(places), SIZE, SIZE), np.uint8)
    for mask, (x, y, radius) in zip(masks, places, strict=True):
        cv2.circle(mask, (x, y), radius, 1, cv2.FILLED)
    return torch.from_numpy(masks).bool()


def extent(masks):
    return torch.tensor([[m.any(0).nonzero()[0], m.any(1).nonzero()[0], m.any(0).nonzero()[-1] + 1,
                          m.any(1).nonzero()[-1] + 1] for m in masks], dtype=torch.float32)  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Six images of four discs, each found a little beside its place, and some that are not there."""
    path = tmp_path_factory.mktemp("json") / "found.json"
    evaluator = EVALUATORS.get("segment")(SPEC, EvalSettings(names=("a", "b"), save_json=path))
    rng = np.random.default_rng(0)
    truth = []
    for number in range(6):
        places = [(x, y, int(rng.integers(6, 22))) for x in (24, 72) for y in (24, 72)]
        labels, classes = discs(places), torch.tensor([0, 1, 1, 0])
        moved = [(x + int(rng.integers(-5, 6)), y, max(3, r + int(rng.integers(-3, 4)))) for x, y, r in places]
        found, guessed = discs([*moved, (48, 48, 9)]), torch.tensor([0, 1, int(rng.integers(0, 2)), 0, 1])
        box = extent(labels)
        rows = torch.cat(((box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]), 1) / SIZE
        info = ImageInfo(number, f"{number + 10}.jpg", Geometry((SIZE, SIZE), (SIZE, SIZE)))
        boxes = torch.cat((torch.zeros(4, 1), classes[:, None].float(), rows), 1)
        scores = torch.from_numpy(rng.permutation(np.linspace(0.2, 0.9, 5)).astype(np.float32))
        order = scores.argsort(descending=True)
        fine = Drawn(found[order])
        result = Results(info, extent(fine.masks), scores[order], guessed[order], masks=fine.masks, fine_masks=fine)
        evaluator.update([result], Batch(torch.zeros(1, 3, SIZE, SIZE), boxes, [info], masks=labels))
        truth.append((labels.numpy(), classes.tolist()))
    return evaluator.compute().metrics, json.loads(path.read_text()), truth


def test_mask_scores_match_pycocotools(scored):
    from pycocotools import mask as tools
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers, rows, truth = scored
    labels = []
    for number, (masks, classes) in enumerate(truth):
        for mask, label in zip(masks, classes, strict=True):
            code = tools.encode(np.asfortranarray(mask, dtype=np.uint8))
            labels.append({
                "id": len(labels) + 1, "image_id": number + 10, "category_id": label, "iscrowd": 0,
                "segmentation": code, "area": float(tools.area(code)), "bbox": tools.toBbox(code).tolist(),
            })  # fmt: skip
    known = COCO()
    images = [{"id": number + 10, "height": SIZE, "width": SIZE} for number in range(6)]
    known.dataset = {"images": images, "annotations": labels, "categories": [{"id": 0}, {"id": 1}], "info": {}}
    known.createIndex()
    evaluation = COCOeval(known, known.loadRes(rows), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    found = [numbers[f"coco/segm/{name}"] for name in names]
    assert found == pytest.approx(evaluation.stats.tolist(), abs=1e-9) and 0.2 < found[0] < 0.9


def test_json_masks_round_trip(scored):
    from pycocotools import mask as tools

    _, rows, _ = scored
    assert len(rows) == 30 and {row["image_id"] for row in rows} == set(range(10, 16))
    for row in rows:
        left, top, width, height = tools.toBbox(
            {**row["segmentation"], "counts": row["segmentation"]["counts"].encode()}
        )
        assert [left, top, width, height] == pytest.approx(row["bbox"], abs=1e-3)


@pytest.mark.parametrize("side", [40, 160])
def test_no_mask_is_kept(side):
    detections, labels, images = 30, 20, 8
    evaluator = EVALUATORS.get("segment")(SPEC, EvalSettings(names=("a", "b")))
    sizes = []
    for number in range(images):
        info = ImageInfo(number, f"{number}.jpg", Geometry((side, side), (side, side)))
        rows = torch.rand(20 * detections, 38)[:detections]  # a view, as that of NMS may be
        classes, masks = torch.zeros(detections, dtype=torch.long), torch.rand(detections, side, side) > 0.5
        found = Results(info, rows[:, :4].cumsum(1), rows[:, 4], classes, masks=masks)
        masks = torch.rand(labels, side, side) > 0.5
        boxes = torch.cat((torch.zeros(labels, 2), torch.rand(labels, 4)), 1)
        evaluator.update([found], Batch(torch.zeros(1, 3, side, side), boxes, [info], masks=masks))
        sizes.append(len(pickle.dumps((evaluator.boxes._records, evaluator._masks))))
    for record in evaluator.boxes._records.values():
        assert all(array.base is None for array in (record.boxes, record.scores))  # views would keep all of `rows`
    per_image = (sizes[-1] - sizes[0]) / (images - 1)
    assert per_image < 44 * detections + 36 * labels + 1500  # boxes, scores, classes and matches, for any mask size


class Masks:
    def __init__(self):
        self.specs = {"segment": SPEC}


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [({}, "cpu", 8), ({}, "cuda", 32), ({"save_json": True}, "cuda", 2), ({"task": "speed"}, "cpu", 32)],
)
def test_batches_of_masks_are_limited(options, device, expected):
    settings = ValSettings(batch_size=32, **options)
    assert _batch_size(Masks(), settings, 640, torch.device(device)) == expected
    assert _batch_size(Masks(), settings, 2560, torch.device(device)) == (1 if expected < 32 else 32)
