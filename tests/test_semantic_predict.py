"""Test sinks, loop and options of detect.py with a network that predicts semantic maps."""

import importlib
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.backends import open_weights as opening
from utils.core.contracts import Frame, Geometry, HeadSpec, ImageInfo, Outputs, Results
from utils.core.data_config import DataConfig, SemanticConfig
from utils.core.errors import UserError
from utils.engine.predict import PredictSettings, format_class_fractions, predict
from utils.plots.prediction_sinks import JoinedVideoSink, WindowSink
from utils.plots.semantic_sinks import CityscapesSink, SemanticMapSink, cityscapes_ids
from utils.plots.semantic_style import SemanticStyle
from utils.plots.video_writer import count_frames
from utils.postprocess import POSTPROCESS

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
# Cityscapes' id to trainId, as in the reader of the masks
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
            28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


class NearestPost:
    """Stands in where the real post-processing is missing: the nearest value, images without borders only."""

    def __init__(self, spec, settings):
        pass

    def __call__(self, decoded, results):
        for logits, result in zip(decoded["logits"], results, strict=True):
            large = torch.nn.functional.interpolate(logits[None], size=result.info.geometry.original_hw, mode="nearest")
            result.semantic = large[0].argmax(dim=0).to(torch.uint8)


@pytest.fixture(autouse=True)
def post_processing(monkeypatch):
    if "semantic" not in POSTPROCESS:
        monkeypatch.setitem(POSTPROCESS._entries, "semantic", NearestPost)


class PixelRunner:
    """Sees its classes in upright bands of equal width, and with `boxes` one person in the middle."""

    stride, fixed_hw = 32, None

    def __init__(self, names=CITYSCAPES, boxes=False, slow_start=0.0):
        self.names = ("person",) if boxes else names
        self.specs = {"detect": HeadSpec("detect", 1, (8, 16, 32), names=("person",))} if boxes else {}
        self.specs["semantic"] = HeadSpec("semantic", len(names), names=names)
        self.pixel_names, self.slow_start, self.seen = names, slow_start, set()

    def run(self, images):
        if images.shape not in self.seen:
            self.seen.add(images.shape)
            time.sleep(self.slow_start)
        count, _, height, width = images.shape
        classes = len(self.pixel_names)
        bands = torch.arange(width // 8) * classes // (width // 8)
        logits = torch.nn.functional.one_hot(bands, classes).T.float()[None, :, None]
        decoded = {"semantic": {"logits": logits.expand(count, -1, height // 8, -1).contiguous()}}
        if "detect" in self.specs:
            row = torch.tensor([width / 2, height / 2, width / 4, height / 2, 0.9, 1.0])
            decoded["detect"] = {"predictions": row.expand(count, 1, -1).clone()}
        return Outputs(decoded)


class FakeSource:
    live, faults, incomplete = False, 0, ()

    def __init__(self, frames):
        self.frames = frames

    def __iter__(self):
        yield from ([frame] for frame in self.frames)

    def close(self):
        pass


def still(path="/a/bus.jpg", hw=(64, 128)) -> Frame:
    return Frame(np.full((*hw, 3), 90, np.uint8), path, f"image 1/1 {path}")


def seen(classes, path="/a/bus.jpg") -> Results:
    hw = classes.shape
    return Results(ImageInfo(0, path, Geometry(hw, hw)), semantic=torch.from_numpy(classes))


def write(sink, *pairs):
    for frame, results in pairs:
        sink.write(frame, results, lambda image=frame.image: image)
    return sink.close()


# ----------------------------------------------------------------------------------------------------------------------
# Sinks


def test_semantic_map_round_trip(tmp_path):
    classes = np.random.default_rng(0).integers(0, 19, (64, 128)).astype(np.uint8)
    classes[:5] = 255
    video = Frame(still().image, "/a/clip.mp4", "", 7, 9)
    text = write(SemanticMapSink(tmp_path, SemanticStyle(CITYSCAPES)), (still(), seen(classes)), (video, seen(classes)))
    assert text == f"2 semantic maps in {tmp_path / 'masks'}, coloured in {tmp_path / 'masks_colour'}"
    for name in ("bus.png", "clip_7.png"):
        written = cv2.imread(str(tmp_path / "masks" / name), cv2.IMREAD_UNCHANGED)
        assert written.dtype == np.uint8 and np.array_equal(written, classes)
    colours = cv2.imread(str(tmp_path / "masks_colour" / "bus.png"))
    assert (colours[classes == 13] == (142, 0, 0)).all()  # a car is 0, 0, 142 in RGB
    assert (colours[:5] == 0).all()


def test_submission_ids_round_trip(tmp_path):
    classes = np.random.default_rng(0).integers(0, 19, (64, 128)).astype(np.uint8)
    frame = still("/a/berlin_000000_000019_leftImg8bit.png")
    write(CityscapesSink(tmp_path, cityscapes_ids(CITYSCAPES, 19)), (frame, seen(classes)))
    path = tmp_path / "berlin_000000_000019_leftImg8bit_pred.png"
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert ids.dtype == np.uint8 and ids.shape == (64, 128)
    assert np.array_equal(np.vectorize(TRAIN_ID.get)(ids), classes)


def test_real_frame_ids(shared, tmp_path):
    folder = shared / "datasets" / "cityscapes_sample" / "gtFine" / "val" / "frankfurt"
    if not folder.is_dir():
        pytest.skip(f"no Cityscapes frame at {folder}")
    train, ids = (
        cv2.imread(str(folder / f"frankfurt_000000_000294_gtFine_label{kind}.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("TrainIds", "Ids")
    )
    write(CityscapesSink(tmp_path, cityscapes_ids(CITYSCAPES, 19)), (still("/a/x.png", train.shape), seen(train)))
    written = cv2.imread(str(tmp_path / "x_pred.png"), cv2.IMREAD_UNCHANGED)
    for index in set(np.unique(train).tolist()) - {255}:  # the two files were made smaller in different ways
        assert (written[train == index] == np.bincount(ids[train == index]).argmax()).all(), CITYSCAPES[index]
    assert (written[train == 255] == 0).all()


def test_submission_class_order():
    assert cityscapes_ids(("sky", "Traffic_Light"), 2)[:2].tolist() == [23, 19]
    assert cityscapes_ids((), 19)[:3].tolist() == [7, 8, 11]
    assert cityscapes_ids(tuple(map(str, range(19))), 19)[18] == 33


@pytest.mark.parametrize(
    ("names", "count", "says"),
    [(("road", "crack"), 2, "unknown: crack"), ((), 2, "have no names"), (("0",), 1, "no names")],
)
def test_submission_of_other_classes(names, count, says):
    with pytest.raises(UserError, match=f"--submit: the {count} semantic classes.*{says}"):
        cityscapes_ids(names, count)


def test_images_to_video(tmp_path):
    frames = [Frame(np.full((64, 96, 3), 40 * i, np.uint8), f"/a/{i}.png", "") for i in range(5)]
    text = write(JoinedVideoSink(tmp_path / "out.mp4"), *((frame, None) for frame in frames))
    assert text == f"5 images in {tmp_path / 'out.mp4'}"
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30)
    shades = []
    while (read := capture.read())[0]:
        assert read[1].shape == (64, 96, 3)
        shades.append(float(read[1].mean()))
    assert shades == pytest.approx([0, 40, 80, 120, 160], abs=6)


def test_video_needs_equal_image_sizes(tmp_path):
    sink = JoinedVideoSink(tmp_path / "out.mp4")
    sink.write(still("/a/first.png"), None, lambda: still().image)
    message = r"/a/odd\.png: 100 x 64 pixels, but /a/first\.png has 128 x 64"
    with pytest.raises(UserError, match=message):
        sink.write(still("/a/odd.png"), None, lambda: still(hw=(64, 100)).image)
    assert sink.close() == "" and list(tmp_path.iterdir()) == []


def test_view_windows(monkeypatch):
    shown, closed = {}, []
    monkeypatch.setenv("DISPLAY", ":9")
    for name in ("namedWindow", "resizeWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.update({title: image}))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: ord("q"))
    monkeypatch.setattr(cv2, "destroyWindow", closed.append)
    sink = WindowSink(lambda classes: np.dstack([classes] * 3))
    sink.write(still(), seen(np.full((64, 128), 7, np.uint8)), lambda: still().image)
    assert sink.stopped and sorted(shown) == ["/a/bus.jpg", "/a/bus.jpg (classes)"] == sorted(closed)
    assert (shown["/a/bus.jpg (classes)"] == 7).all() and (shown["/a/bus.jpg"] == 90).all()


# ----------------------------------------------------------------------------------------------------------------------
# The loop


def test_largest_classes_text():
    assert (
        format_class_fractions({3: 0.414, 0: 0.3, 7: 0.2, 1: 0.08}, ("a", "b", "c", "d"))
        == "d 41 %, a 30 %, class 7 20 %"
    )
    assert format_class_fractions({0: 0.995, 1: 0.005}, ("a", "b")) == "a 100 %"
    assert format_class_fractions({0: 0.5, 1: 0.5}, ("0",)) == "class 0 50 %, class 1 50 %"
    assert format_class_fractions({}, ()) == "(no classes)"


@pytest.mark.parametrize(
    ("boxes", "line", "last"),
    [(False, "64x128 road 50 %, sky 50 %, ", "post-process"), (True, "64x128 1 person; road 50 %, sky 50 %, ", "NMS")],
)
def test_semantic_console_lines(caplog, boxes, line, last):
    caplog.set_level("INFO", logger="polyolo")
    runner = PixelRunner(("road", "sky"), boxes)
    report = predict(runner, FakeSource([still()]), PredictSettings(image_hw=(64, 128)))
    assert line in caplog.messages[0] and f" ms {last} per image" in report.speed()


def inference_ms(report) -> float:
    return float(report.speed().split(" pre-process, ")[1].split(" ms")[0])


def test_speed_excludes_first_batches():
    frames = [still(hw=(64, 128))] * 4 + [still(hw=(128, 64))] * 4
    report = predict(PixelRunner(slow_start=0.4), FakeSource(frames), PredictSettings(image_hw=(128, 128)))
    assert report.frames == 8 and report.first_frames == 2 and inference_ms(report) < 100  # with them it is over 100
    assert sum(report.first_seconds) > 0.8
    alone = predict(PixelRunner(slow_start=0.4), FakeSource(frames[:1]), PredictSettings(image_hw=(128, 128)))
    assert inference_ms(alone) >= 400


# ----------------------------------------------------------------------------------------------------------------------
# detect.py


@pytest.fixture
def detect(monkeypatch, tmp_path):
    """Return a function that runs detect.py on a folder of images with a runner, and the folder it wrote."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.full((32, 608, 3), 60 * i, np.uint8))

    def run(runner, script="detect", **options):
        opened = opening.OpenedModel(runner, "some", {"imgsz": 608}, (tmp_path / "some.pt",))
        monkeypatch.setattr(opening, "open_model", lambda *_: opened)
        options = {"source": str(tmp_path / "in"), "project": str(tmp_path / "runs"), "imgsz": [32, 608], **options}
        report = importlib.import_module(script).run(device="cpu", **options)
        return report, tmp_path / "runs" / "exp"

    return run


def test_default_outputs(detect):
    report, folder = detect(PixelRunner(boxes=True), no_legend=True, line_thickness=1, hide_labels=True)
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    photo = cv2.imread(str(folder / "1.png")).astype(float)
    assert np.abs(photo[4, 16] - (87.2, 61.6, 87.2)).max() <= 1  # .6 * 60 + .4 * (128, 64, 128): road
    assert (photo[16, 228] == (0x38, 0x38, 0xFF)).all()  # the box of the person from 304 - 76
    assert report.found == {"person": 3}


def test_semantic_outputs(detect):
    options = {"save_mask": True, "submit": True, "save_as_video": True, "nosave": True}
    report, folder = detect(PixelRunner(), **options)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    kinds = [
        f"{kind}/{i}{end}.png"
        for kind, end in (("masks", ""), ("masks_colour", ""), ("results", "_pred"))
        for i in (0, 1, 2)
    ]
    assert names == sorted([*kinds, "out.mp4"]) and len(report.saved) == 3
    classes = cv2.imread(str(folder / "masks" / "2.png"), cv2.IMREAD_UNCHANGED)
    ids = cv2.imread(str(folder / "results" / "2_pred.png"), cv2.IMREAD_UNCHANGED)
    middles = 32 * np.arange(19) + 16
    assert classes[16, middles].tolist() == list(range(19)) and ids[16, middles].tolist() == list(TRAIN_ID)
    assert count_frames(folder / "out.mp4") == 3


def test_opacity_option(detect):
    _, folder = detect(PixelRunner(), mask_opacity=1.0, no_legend=True)
    assert (cv2.imread(str(folder / "0.png"))[16, 16] == (128, 64, 128)).all()


def test_data_set_colours(detect, monkeypatch, tmp_path):
    def load_data(text):
        own = SemanticConfig(("crack", "rest"), {}, palette=((10, 20, 30), (40, 50, 60)))
        return DataConfig(Path(text), tmp_path, (), {}, semantic=own)

    monkeypatch.setattr("utils.programs.semantic_prediction.load_data", load_data)
    _, folder = detect(PixelRunner(("crack", "rest")), mask_opacity=1.0, no_legend=True, data="own.yaml")
    photo = cv2.imread(str(folder / "0.png"))
    assert photo[16, 16].tolist() == [30, 20, 10] and photo[16, 590].tolist() == [60, 50, 40]


def test_missing_data_set_loses_colours_only(detect):
    _, folder = detect(PixelRunner(), mask_opacity=1.0, no_legend=True)  # the checkpoint names none
    assert (cv2.imread(str(folder / "0.png"))[16, 16] == (128, 64, 128)).all()
    with pytest.raises(UserError, match=r"no-such\.yaml: no such data-set YAML"):
        detect(PixelRunner(), data="no-such.yaml")


def test_image_sizes_checked_before_writing(detect, tmp_path):
    cv2.imwrite(str(tmp_path / "in" / "1b.png"), np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"1b\.png: 64 x 32 pixels, but .*0\.png has 608 x 32"):
        detect(PixelRunner(), save_as_video=True)
    assert not (tmp_path / "runs").exists()


def test_videos_are_not_joined(detect, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 32))
    writer.write(np.zeros((32, 64, 3), np.uint8))
    writer.release()
    with pytest.raises(UserError, match="--save-as-video: the source has no still images"):
        detect(PixelRunner(), save_as_video=True, source=str(tmp_path / "clip.mp4"))
    assert not (tmp_path / "runs").exists()


class BoxRunner(PixelRunner):
    """A runner without semantic maps."""

    def __init__(self):
        super().__init__(("road",), boxes=True)
        del self.specs["semantic"]


@pytest.mark.parametrize("option", ["save_mask", "submit"])
def test_semantic_options_need_semantic_head(detect, tmp_path, option):
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(UserError, match=rf"{flag}: .*some\.pt has no semantic head \(its heads: detect\)"):
        detect(BoxRunner(), **{option: True})
    assert not (tmp_path / "runs").exists()


def test_invalid_submission_leaves_no_run_folder(detect, tmp_path):
    with pytest.raises(UserError, match="--submit: the 2 semantic classes"):
        detect(PixelRunner(("crack", "rest")), submit=True)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("polyolo"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_save_txt_without_boxes(detect, warnings, tmp_path):
    detect(PixelRunner(), save_txt=True, nosave=True)
    assert len(warnings()) == 1 and "--save-txt is ignored" in warnings()[0] and "--save-mask" in warnings()[0]
    assert not (tmp_path / "runs").exists()


def test_ineffective_options_warn(detect, warnings):
    detect(BoxRunner(), no_legend=True, mask_opacity=0.3)
    assert [text.split(" is ignored")[0] for text in warnings()] == ["--no-legend", "--mask-opacity"]


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_invalid_opacity(detect, value):
    with pytest.raises(UserError, match="--mask-opacity"):
        detect(PixelRunner(), mask_opacity=value)


def test_segment_predict_needs_masks(detect):
    with pytest.raises(UserError, match=r"has no mask head .*use detect\.py"):
        detect(PixelRunner(), script="segment.predict")
