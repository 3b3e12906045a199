"""Code written for YOLOv5's torch.hub models runs unchanged: every attribute, with what programs expect of it."""

import copy

import numpy as np
import pytest
import torch
from helpers_networks import write_networks
from torch import nn

import hubconf
from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core.errors import UserError
from utils.hub.hub_model import load

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
TENSOR = torch.from_numpy(np.random.default_rng(1).random((2, 3, 64, 64), np.float32))
CELLS = 3 * (8 * 8 + 4 * 4 + 2 * 2)  # boxes of a 64 x 64 input


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def model(files):
    model = load(files["boxes"], device="cpu")
    model.conf, model.max_det = 0.0, 5  # untrained: everything counts
    return model


MODEL_ATTRIBUTES = {  # what programs read, and what they get
    "names": lambda value: value == {0: "cat", 1: "dog", 2: "bus"},
    "nc": lambda value: value == 3,
    "stride": lambda value: value == 32,
    "yaml": lambda value: isinstance(value, dict) and value["anchors"],
    "pt": lambda value: value is True,
    "fp16": lambda value: value is False,
    "amp": lambda value: value is False,
    "model": lambda value: isinstance(value, nn.Module) and len(value.model) == 25,
    "training": lambda value: value is False,
    "device": lambda value: value == torch.device("cpu"),
    "agnostic": lambda value: value is False,
    "multi_label": lambda value: value is False,
    "classes": lambda value: value is None,
    "iou": lambda value: value == 0.45,
}


@pytest.mark.parametrize("name", MODEL_ATTRIBUTES)
def test_model_attributes(model, name):
    assert MODEL_ATTRIBUTES[name](getattr(model, name))


MODEL_CALLS = {  # calls that programs chain, and what must hold afterwards
    "to": (lambda model: model.to("cpu"), lambda model: model.device.type == "cpu"),
    "cpu": (lambda model: model.cpu(), lambda model: model.device.type == "cpu"),
    "half": (lambda model: model.half(), lambda model: model.fp16 and next(model.parameters()).dtype == torch.half),
    "float": (lambda model: model.half().float(), lambda model: not model.fp16),
    "eval": (lambda model: model.eval(), lambda model: not model.training),
    "train": (lambda model: model.train(), lambda model: model.training and model.model.training),
    "share_memory": (lambda model: model.share_memory(), lambda model: next(model.parameters()).is_shared()),
    "requires_grad_": (lambda model: model.requires_grad_(True), lambda model: next(model.parameters()).requires_grad),
}


@pytest.mark.parametrize("name", MODEL_CALLS)
def test_module_methods(model, name):
    call, holds = MODEL_CALLS[name]
    assert call(model) is model and holds(model)
    found = model(IMAGE, size=64).xyxy[0]
    assert found.shape == (5, 6) and found.dtype == torch.float32


def test_is_a_module_with_parameters(model):
    assert isinstance(model, nn.Module)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_700_000
    state = model.state_dict()
    assert state and all(name.startswith("model.model.") for name in state)
    before = model(IMAGE, size=64).xyxy[0]
    model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert not torch.equal(model(IMAGE, size=64).xyxy[0], before)  # the parameters are those that predict


def test_half_and_copies_predict_like_the_model(model):
    expected = model(TENSOR)
    twin = copy.deepcopy(model).half()
    assert twin.fp16 and not model.fp16
    assert torch.equal(model(TENSOR), expected)
    assert torch.allclose(twin(TENSOR), expected, atol=0.5, rtol=0.05)
    assert torch.equal(model.half().float()(TENSOR).float().isfinite(), torch.ones_like(expected, dtype=torch.bool))


def test_replaced_network_is_used(model, files):
    expected = model(TENSOR)
    model.model = build_network(read_architecture("yolov5n"), 3).eval()
    assert model(TENSOR).shape == expected.shape and not torch.equal(model(TENSOR), expected)


def test_tensors_give_raw_predictions(model, files):
    raw = model(TENSOR)
    assert raw.shape == (2, CELLS, 5 + 3)
    assert torch.equal(raw, model.decode(TENSOR)["detect"]["predictions"])
    predictions, prototypes = load(files["masks"], device="cpu")(TENSOR)
    assert predictions.shape == (2, CELLS, 5 + 2 + 32) and prototypes.shape == (2, 32, 16, 16)
    classifier = load(files["whole"], device="cpu")
    logits = classifier(TENSOR)
    assert torch.allclose(logits.softmax(1), classifier.decode(TENSOR)["classify"]["probabilities"])
    assert load(files["pixels"], device="cpu")(TENSOR).shape == (2, 19, 8, 8)


def test_ensembles_give_raw_predictions(files):
    both = load([files["boxes"], files["boxes"]], device="cpu")
    assert isinstance(both.model, nn.ModuleList) and both(TENSOR).shape == (2, 2 * CELLS, 8)
    assert both.half().fp16 and both(TENSOR).shape == (2, 2 * CELLS, 8)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_traced_model(model, tmp_path):
    traced = torch.jit.trace(model, TENSOR)
    other = torch.rand(2, 3, 64, 64)
    assert torch.allclose(traced(other), model(other), atol=1e-4)
    torch.jit.save(traced, tmp_path / "traced.pt")
    assert torch.allclose(torch.jit.load(tmp_path / "traced.pt")(other), model(other), atol=1e-4)


@pytest.mark.parametrize("classes", [1, [1], (1,), np.array([1])])
def test_classes_may_be_one_number(model, classes):
    model.classes = classes
    assert set(model(IMAGE, size=64).xyxy[0][:, 5].tolist()) == {1.0}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("confidence", "conf"),
        ("conf_thres", "conf"),
        ("iou_thres", "iou"),
        ("max_dets", "max_det"),
        ("agnostics", "agnostic"),
        ("multilabel", "multi_label"),
        ("class_", "classes"),
    ],
)
def test_misspelled_attributes_raise(model, wrong, nearest):
    with pytest.raises(AttributeError, match=f"no attribute '{wrong}'; did you mean '{nearest}'"):
        setattr(model, wrong, 0.5)
    assert not hasattr(model, wrong)


def test_renamed_classes(model):
    model.names = ["a", "b", "c"]
    found = model(IMAGE, size=64)
    assert found.names == {0: "a", 1: "b", 2: "c"}
    assert {row["name"] for row in found.summary()} <= {"a", "b", "c"}


def test_larger_side_of_a_pair_counts(model):
    assert model(IMAGE, size=(64, 96)).s == model(IMAGE, size=96).s == (1, 3, 96, 96)
    assert model(IMAGE, shape=(64, 128)).s == (1, 3, 64, 128)
    with pytest.raises(UserError, match="size expects"):
        model(IMAGE, size=("64", 64))


def test_profile_logs_layer_times(model, caplog):
    model(IMAGE, size=64, profile=True)
    assert "C3" in caplog.text and "GFLOPs" in caplog.text


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level("INFO", logger="polyolo")


# ----------------------------------------------------------------------------------------------------------------------
# Results


RESULT_ATTRIBUTES = {
    "n": lambda value: value == 2,
    "s": lambda value: value == (2, 3, 64, 64),
    "t": lambda value: len(value) == 3 and all(milliseconds > 0 for milliseconds in value),
    "times": lambda value: len(value) == 3 and all(one.t > 0 for one in value),
    "files": lambda value: value == ["image0.jpg", "image1.jpg"],
    "names": lambda value: value[2] == "bus",
    "ims": lambda value: np.array_equal(value[0], IMAGE),
    "imgs": lambda value: np.array_equal(value[1], IMAGE),
    **{
        name: lambda value: [tuple(rows.shape) for rows in value] == [(5, 6), (5, 6)]
        for name in ("pred", "xyxy", "xywh", "xyxyn", "xywhn")
    },
}


@pytest.mark.parametrize("name", RESULT_ATTRIBUTES)
def test_result_attributes(model, name):
    assert RESULT_ATTRIBUTES[name](getattr(model([IMAGE, IMAGE], size=64), name))


def test_times_are_of_the_call_and_of_an_image(model):
    found = model([IMAGE, IMAGE], size=64)
    assert [1000 * one.t / 2 for one in found.times] == pytest.approx(found.t)


def test_indexed_results(model):
    found = model([IMAGE, IMAGE], size=64)
    assert len(found[0]) == 1 and torch.equal(found[-1].xyxy[0], found.xyxy[1])
    with pytest.raises(IndexError):
        found[2]
    with pytest.raises(UserError, match=r"results\[0\]\.boxes"):
        found.boxes  # noqa: B018


def test_boxes_view(model):
    found = model(IMAGE, size=64)
    boxes = found[0].boxes
    assert len(boxes) == 5 and torch.equal(boxes.data, found.xyxy[0])
    assert torch.equal(boxes.xyxy, found.xyxy[0][:, :4]) and torch.equal(boxes.conf, found.xyxy[0][:, 4])
    assert torch.equal(boxes.cls, found.xyxy[0][:, 5])
    for name in ("xywh", "xyxyn", "xywhn"):
        assert torch.allclose(getattr(boxes, name), getattr(found, name)[0][:, :4])
    assert [one.conf.item() for one in boxes] == boxes.conf.tolist()
    assert len(boxes[boxes.conf > 2]) == 0 and found.masks is None and found.probs is None


def test_masks_view(files):
    model = load(files["masks"], device="cpu")
    model.conf, model.max_det = 0.0, 3
    found = model(IMAGE, size=64)
    masks = found.masks
    assert masks.data.shape == (3, 48, 64) and masks.data.any() and len(masks.xy) == 3
    assert all(outline.max() <= 1 for outline in masks.xyn if len(outline))
    rows = found.summary()
    assert set(rows[0]) == {"name", "class", "confidence", "box", "segments"}
    assert len(rows[0]["segments"]["x"]) == len(masks.xy[0])


def test_probs_view(files):
    found = load(files["whole"], device="cpu")(IMAGE, size=64)
    scores = found.results[0].probabilities
    assert found.probs.top1 == scores.argmax() and found.probs.top1conf == scores.max()
    assert len(found.probs.top5) == 5 and found.boxes is None
    assert "ms post-process per image" in str(found)  # a classifier has no NMS
    assert found.summary() == [
        {"name": "abcdefg"[found.probs.top1], "class": found.probs.top1, "confidence": round(scores.max().item(), 5)}
    ]


def test_summary_of_boxes(model):
    found = model(IMAGE, size=64)
    rows, relative = found.summary(), found.summary(normalize=True, decimals=3)
    x1, y1, x2, y2, score, number = found.xyxy[0][0].tolist()
    assert rows[0]["box"] == pytest.approx({"x1": x1, "y1": y1, "x2": x2, "y2": y2}, abs=1e-4)
    assert rows[0]["confidence"] == pytest.approx(score, abs=1e-4) and rows[0]["class"] == number
    assert relative[0]["box"]["x2"] == pytest.approx(x2 / 64, abs=1e-3)


def test_crops_in_the_usual_order_and_files(model, tmp_path, caplog):
    found = model([IMAGE, IMAGE], size=64)
    crops = found.crop(save_dir=tmp_path / "exp")
    first = crops[:5]
    assert [one["conf"].item() for one in first] == sorted(found.xyxy[0][:, 4].tolist())
    assert isinstance(first[0]["box"], list) and all(side.ndim == 0 for side in first[0]["box"])
    names = sorted(path.relative_to(tmp_path / "exp").as_posix() for path in (tmp_path / "exp").rglob("*.jpg"))
    counts = {}
    for number, stem in [(int(row[5]), f"image{i}") for i in (0, 1) for row in found.xyxy[i]]:
        counts[number, stem] = counts.get((number, stem), 0) + 1
    expected = [
        f"crops/{found.names[number]}/{stem}{index if index > 1 else ''}.jpg"
        for (number, stem), count in counts.items()
        for index in range(1, count + 1)
    ]
    assert names == sorted(expected)
    assert f"Saved 10 crops to {tmp_path / 'exp'}" in caplog.text


def test_save_message(model, tmp_path, caplog):
    folder = model(IMAGE, size=64).save(save_dir=tmp_path / "exp")
    assert folder == tmp_path / "exp" and f"Saved 1 image to {folder}" in caplog.text


def test_hub_names_need_no_suffix(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = load_checkpoint(files["boxes"])
    save_checkpoint(tmp_path / "yolov5n.pt", stored.network, stored.meta)
    assert hubconf.custom("yolov5n", device="cpu", _verbose=False).nc == 3
    assert hubconf.custom(["yolov5n", "yolov5n.pt"], device="cpu", _verbose=False).nc == 3
    with pytest.raises(UserError, match=r"yolov5s\.pt"):
        hubconf.custom("yolov5s", device="cpu")


# ----------------------------------------------------------------------------------------------------------------------
# Other packages


def test_supervision_reads_results(model):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = model(IMAGE, size=64)
    converted = supervision.Detections.from_yolov5(found)
    assert converted.xyxy.tolist() == found.xyxy[0][:, :4].tolist()
    assert converted.confidence.tolist() == found.xyxy[0][:, 4].tolist()
    assert converted.class_id.tolist() == found.xyxy[0][:, 5].int().tolist()


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_sahi_slices(files, kind):
    pytest.importorskip("sahi", reason="sahi is not installed")
    from sahi.predict import get_prediction, get_sliced_prediction

    from utils.hub.sahi_model import SahiModel

    detector = SahiModel(model_path=str(files[kind]), confidence_threshold=0.0, device="cpu", image_size=64)
    detector.model.max_det = 4
    assert detector.has_mask == (kind == "masks")
    whole = get_prediction(IMAGE, detector).object_prediction_list
    direct = detector.model(IMAGE, size=64).xyxy[0]
    assert len(whole) > 0
    if kind == "boxes":
        assert sorted(one.score.value for one in whole) == pytest.approx(sorted(direct[:, 4].tolist()))
    large = np.tile(IMAGE, (3, 3, 1))
    sliced = get_sliced_prediction(large, detector, slice_height=64, slice_width=64, verbose=0).object_prediction_list
    assert max(one.bbox.maxx for one in sliced) > 64  # boxes of slices are shifted to the whole image
    assert all(one.category.name in detector.category_names for one in sliced)
