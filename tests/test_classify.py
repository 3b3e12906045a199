"""Classification: data folders, crops, loss, metrics, and networks from all kinds of weights."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.pretrained import choose_initial_network
from utils.core.contracts import Batch, EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.train_settings import TrainSettings
from utils.datasets import GENERATORS
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.pipeline.classification_samples import open_classification_loader
from utils.losses import LOSSES
from utils.metrics import EVALUATORS
from utils.ops.crop import centre_crop, colour_jitter, random_resized_area
from utils.postprocess import POSTPROCESS

SPEC = HeadSpec("classify", 3)


def write(path, seed=0, hw=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (*hw, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Classes b (5 training images) and A (3), 2 of each for validation."""
    for split, counts in (("train", {"b": 5, "A": 3}), ("val", {"b": 2, "A": 2})):
        for name, count in counts.items():
            for i in range(count):
                write(tmp_path / "set" / split / name / f"{i}.png", seed=i)
    return tmp_path / "set"


def request(folder, training=True, **changes):
    options = {"image_size": 32, "batch_size": 4, "stride": 32, "hyp": Hyp(), "workers": 0, "seed": 1}
    split = "train" if training else "val"
    return LoadRequest(data=load_data(str(folder)), split=split, training=training, **(options | changes))


# ----------------------------------------------------------------------------------------------------------------------
# Data


def test_folder_data_set_has_sorted_classes(folder):
    data = load_data(str(folder))
    assert (data.names, data.format, sorted(data.splits)) == (("A", "b"), "folders", ["train", "val"])
    loader = open_classification_loader(request(folder))
    assert loader.class_counts.tolist() == [3, 5] and loader.num_batches == 2
    found = [(batch.info[i].path.split("/")[-2], c) for batch in loader.epoch(0) for i, c in enumerate(batch.classes)]
    assert sorted((name, int(c)) for name, c in found) == [("A", 0)] * 3 + [("b", 1)] * 5


def test_folder_found_by_name(folder, monkeypatch):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(folder.parent))
    assert load_data("set").root == folder


def test_test_split_replaces_missing_val(folder):
    (folder / "val").rename(folder / "test")
    assert load_data(str(folder)).split("val") == (folder / "test",)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_deterministic(folder, workers):
    whole = list(open_classification_loader(request(folder)).epoch(3))
    again = list(open_classification_loader(request(folder, workers=workers)).epoch(3, start=1))
    assert torch.equal(again[0].images, whole[1].images) and torch.equal(again[0].classes, whole[1].classes)
    halves = [open_classification_loader(request(folder, batch_size=2), place=(r, 2)) for r in (0, 1)]
    parts = [next(iter(loader.epoch(3))) for loader in halves]
    joined = torch.stack([parts[i % 2].images[i // 2] for i in range(4)])
    assert torch.equal(joined, whole[0].images)
    assert not torch.equal(next(iter(open_classification_loader(request(folder)).epoch(4))).images, whole[0].images)


def test_caches_do_not_change_batches(folder):
    plain = next(iter(open_classification_loader(request(folder)).epoch(0)))
    for cache in ("ram", "disk"):
        assert torch.equal(
            next(iter(open_classification_loader(request(folder, cache=cache)).epoch(0))).images, plain.images
        )


def test_faulty_images_and_small_classes_are_reported(folder, caplog):
    (folder / "train" / "b" / "broken.png").write_bytes(b"no image")
    (folder / "train" / "c").mkdir()
    for i in range(60):
        write(folder / "train" / "b" / f"more{i}.png", hw=(12, 12))
    with caplog.at_level("INFO", logger="polyolo"):
        loader = open_classification_loader(request(folder))
    assert loader.num_images == 68 and loader.class_counts.tolist() == [3, 65, 0]
    for said in ("broken.png: not an image", "/c: no images in this folder", "no images of c", "3 of the rarest class"):
        assert said in caplog.text, said


FAULTS = {
    "a class that training does not have": (lambda f: write(f / "val" / "z" / "0.png"), "val", r"z: not a class of"),
    "no images": (lambda f: [p.unlink() for p in (f / "val").rglob("*.png")], "val", r"no images \(avif"),
    "no folders": (lambda f: (f / "train").rename(f / "old"), "train", "no folder train"),
    "a file in place of a split": (lambda f: ((f / "val").rename(f / "v"), write(f / "val")), "val", "no folder val"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_too_many_faulty_images(folder, kind, monkeypatch):
    damage, split, says = FAULTS[kind]
    monkeypatch.setattr(cv2, "imwrite", lambda path, _: open(path, "w").close() or True)  # noqa: PTH123
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        open_classification_loader(request(folder, training=split == "train"))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_folder_without_splits_or_classes(tmp_path):
    with pytest.raises(UserError, match="train/<class>/"):
        load_data(str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="no folders of images"):
        load_data(str(tmp_path))


def test_missing_image_becomes_unlabelled_grey(folder):
    loader = open_classification_loader(request(folder, training=False))
    (folder / "val" / "A" / "0.png").unlink()
    batch = next(iter(loader.epoch(0)))
    assert batch.classes.tolist() == [-1, 1, 0, 1] and batch.instances == 3
    assert (batch.images[0] == 114).all()


# ----------------------------------------------------------------------------------------------------------------------
# Pixels


def test_center_crop():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200
    square, geometry = centre_crop(image, (2, 2))
    assert square.shape == (2, 2, 3) and (square == 200).all()
    assert geometry == Geometry((4, 8), (2, 2), (0.5, 0.5), (-1.0, 0.0))  # x = 2 lies at the left border


def test_center_crop_of_reference_image(shared):
    image = cv2.imread(str(shared / "images" / "bus.jpg"))
    with np.load(shared / "reference" / "cls_kuih_nc10_bus.npz") as reference:
        found = centre_crop(image, (224, 224))[0][..., ::-1].astype(int)
        assert np.abs(found - reference["input"]).max() <= 1  # another release of OpenCV


def test_random_resized_crop_ranges():
    rng = np.random.default_rng(0)
    parts = np.array([random_resized_area(rng, (300, 400), 0.08) for _ in range(2000)])
    top, left, height, width = parts.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    areas, aspects = height * width / 120_000, width / height
    assert 0.079 < areas.min() < 0.1 and areas.max() > 0.9 and aspects.min() > 0.74 and aspects.max() < 1.35
    assert random_resized_area(rng, (10, 1000), 1.0) == (0, 493, 10, 13)  # no draw fits: the middle, 4/3 wide


def test_color_jitter_ranges():
    grey = np.full((4, 4, 3), 100, np.uint8)
    means = [colour_jitter(grey, np.random.default_rng(i), 0.4).mean() for i in range(200)]
    assert 59 <= min(means) < 70 and 130 < max(means) <= 141  # of one colour: only brightness acts
    assert (colour_jitter(grey, np.random.default_rng(0), 0.0) == grey).all()


# ----------------------------------------------------------------------------------------------------------------------
# Loss and scores


def batch_of(classes, count=None):
    info = [ImageInfo(i, f"{i}.jpg", Geometry((4, 4), (4, 4))) for i in range(count or len(classes))]
    known = None if classes is None else torch.tensor(classes)
    return Batch(torch.zeros(len(info), 3, 4, 4), torch.zeros(0, 6), info, classes=known)


def test_loss_is_smoothed_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [3.0, 3.0, 3.0]])
    found = LOSSES.get("classify")(SPEC, Hyp(label_smoothing=0.1))({"logits": logits}, batch_of([0, 2, -1]))["ce"]
    logs = log_softmax(logits, 1)
    targets = torch.tensor([[0.9, 0, 0], [0, 0, 0.9]]) + 0.1 / 3
    assert float(found) == pytest.approx(float(-(targets * logs[:2]).sum() / 2), rel=1e-6)


@pytest.mark.parametrize("classes", [None, [-1, -1]])
def test_loss_without_labels_is_zero(classes):
    logits = torch.randn(2, 3, requires_grad=True)
    value = LOSSES.get("classify")(SPEC, Hyp())({"logits": logits}, batch_of(classes, 2))["ce"]
    value.backward()
    assert float(value.detach()) == 0 and (logits.grad == 0).all()


def test_scores():
    spec, names = HeadSpec("classify", 7), tuple("abcdefg")
    evaluator = EVALUATORS.get("classify")(spec, EvalSettings(names=names))
    post = POSTPROCESS.get("classify")(spec, EvalSettings(names=names))
    rows = torch.tensor(
        [
            [0.9, 0.1, 0, 0, 0, 0, 0],  # a, right
            [0.3, 0.2, 0.1, 0.15, 0.05, 0.12, 0.08],  # e is the last of seven
            [0.4, 0.2, 0.1, 0.15, 0.06, 0.05, 0.04],  # e is the fifth
            [0.2, 0.2, 0.2, 0.2, 0.2, 0, 0],  # b: of equals the first wins, so a
            [1.0, 0, 0, 0, 0, 0, 0],  # unlabelled
        ]
    )
    batch = batch_of([0, 4, 4, 1, -1])
    results = [Results(info) for info in batch.info]
    post({"probabilities": rows}, results)
    evaluator.update(results, batch)
    evaluator.update(results, batch)  # an image twice counts once
    scores = evaluator.compute()
    assert scores.metrics == {"top1": 0.25, "top5": 0.75}
    assert scores.per_class == {0: 1.0, 1: 0.0, 4: 0.0}
    assert scores.rows[-1] == ("e", {"Images": 2, "top1_acc": 0.0, "top5_acc": 0.5})
    assert scores.details.confusion[0].tolist() == [1, 1, 0, 0, 2, 0, 0] and scores.details.confusion.sum() == 4


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def start(path=None, **settings):
    return choose_initial_network(TrainSettings(**settings), path, ("classify",), "yolov5n-cls")


def test_detector_weights_transfer_to_classifier(tmp_path):
    detector = build_network(read_architecture("yolov5n"), 2)
    save_checkpoint(tmp_path / "d.pt", detector, {})
    found = start(tmp_path / "d.pt", weights="d.pt", dropout=0.3)
    network = build_network(found.architecture, 3)
    assert list(network.heads) == ["classify"] and network.heads["classify"].drop.p == 0.3 and len(network.model) == 10
    assert torch.equal(found.state["model.4.cv1.conv.weight"], detector.state_dict()["model.4.cv1.conv.weight"])
    assert len(build_network(start(tmp_path / "d.pt", weights="d.pt", cutoff=7).architecture, 3).model) == 7
    assert start(tmp_path / "d.pt", weights="d.pt", pretrained=False).state is None
    with pytest.raises(UserError, match="cannot cut a network of 25 rows after row 99"):
        start(tmp_path / "d.pt", weights="d.pt", cutoff=99)
    with pytest.raises(UserError, match="already has the head"):
        start(cfg="yolov5n-cls", cutoff=7)


def test_torchvision_checkpoint_round_trip(tmp_path):
    description = {**start(cfg="squeezenet1_1").architecture, "dropout": 0.1}
    network = build_network(description, 3, ("a", "b", "c")).eval()
    images = torch.rand(2, 3, 64, 64)
    save_checkpoint(tmp_path / "s.pt", network, {})
    again = load_checkpoint(tmp_path / "s.pt")
    assert again.task == "classify" and again.names == ("a", "b", "c")
    assert torch.equal(again.network(images)["classify"]["logits"], network(images)["classify"]["logits"])
    assert {m.p for m in again.network.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    torch.save(network.heads["classify"].net.state_dict(), tmp_path / "bare.pth")
    found = start(tmp_path / "bare.pth", cfg="squeezenet1_1", weights="bare.pth")
    assert found.state.keys() == network.state_dict().keys()


def test_torchvision_normalisation_and_sizes():
    network = build_network(read_architecture("mobilenet_v3_small"), 3)
    assert {(m.eps, m.momentum) for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {(0.001, 0.01)}
    with torch.device("meta"):
        assert build_network(read_architecture("vit_b_32"), 3).fixed_hw == (224, 224)
    with pytest.raises(UserError, match="no such model YAML"):
        read_architecture("resnet5")


def test_normalisation_survives_half_precision():
    network = build_network(read_architecture("yolov5n-cls"), 2).eval()
    mean = network.get_buffer("_mean").clone()
    assert network.half().get_buffer("_mean").dtype is torch.float16
    assert torch.equal(network.float().get_buffer("_mean"), mean) and "_mean" not in network.state_dict()
    image = torch.full((1, 3, 64, 64), 0.5)
    with_it = network(image)["classify"]["logits"]
    plain = build_network({k: v for k, v in network.architecture.items() if k != "normalise"}, 2).eval()
    plain.load_state_dict(network.state_dict())
    seen = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    assert torch.allclose(plain(seen)["classify"]["logits"], with_it, atol=1e-6)


@pytest.mark.parametrize("given", ["[1, 2, 3]", "{mean: [0, 0], std: [1, 1]}", "{mean: [0, 0, 0], std: [1, 0, 1]}"])
def test_invalid_normalisation(given):
    text = f"nc: 2\nnormalise: {given}\nbackbone:\n  - [-1, 1, Conv, [8]]\nhead:\n  - [-1, 1, Classify, [nc]]\n"
    with pytest.raises(UserError, match="`normalise:` must be"):
        read_architecture(text)


def test_generated_class_folders(tmp_path):
    generate = "{kind: shape-classes, train: 2, val: 1, size: 64}"
    yaml = tmp_path / "s.yaml"
    yaml.write_text(f"path: s\ntrain: train\nval: val\nformat: folders\nnames: [ring, star]\ngenerate: {generate}\n")
    data = load_data(str(yaml))
    ensure_generated(data)
    files = {path.relative_to(tmp_path).as_posix(): path for path in sorted((tmp_path / "s").rglob("*.jpg"))}
    train = [f"s/train/{name}/shape_{i:06d}.jpg" for name in ("ring", "star") for i in (0, 1)]
    assert list(files) == [*train, "s/val/ring/shape_000000.jpg", "s/val/star/shape_000000.jpg"]
    recipe = GENERATORS.get("shape-classes")(data)
    made = {f"s/{name}": content for step in range(recipe.steps) for name, content in recipe.make(step).items()}
    assert made == {name: path.read_bytes() for name, path in files.items()} and len(set(made.values())) == 6
    assert open_classification_loader(request(yaml)).class_counts.tolist() == [2, 2]
