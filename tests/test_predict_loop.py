"""The prediction loop with a runner that knows its answer, and detect.py from the command line."""

import subprocess
import sys
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from utils.core.contracts import Frame, HeadSpec, Outputs
from utils.core.errors import UserError
from utils.engine.predict import PredictSettings, format_counts, network_size, plural, predict

NAMES = ("person", "bus", "scissors")


class FakeRunner:
    """Finds, in every image, one person at fixed place and one faint bus."""

    specs = {"detect": HeadSpec("detect", 3, (8, 16, 32))}  # noqa: RUF012
    names, stride, fixed_hw = NAMES, 32, None

    def __init__(self):
        self.shapes = []

    def run(self, images):
        assert images.dtype == torch.uint8 and images.is_contiguous(memory_format=torch.channels_last)
        self.shapes.append(tuple(images.shape))
        self.last = images
        rows = torch.tensor([[32.0, 32, 16, 32, 0.9, 1, 0, 0], [100, 40, 20, 20, 0.5, 0, 0.6, 0]])
        return Outputs({"detect": {"predictions": rows.expand(len(images), -1, -1).clone()}})


class FakeSource:
    """Frames given in groups; `stop_at` raises Ctrl-C instead of that group."""

    live, faults, incomplete = False, 2, ()

    def __init__(self, groups, stop_at=None):
        self.groups, self.stop_at, self.closed = groups, stop_at, False

    def __iter__(self):
        for i, group in enumerate(self.groups):
            if i == self.stop_at:
                raise KeyboardInterrupt
            yield group

    def close(self):
        self.closed = True


class Collect:
    stopped = False

    def __init__(self, stop_after=None):
        self.seen, self.annotated, self.closed, self.stop_after = [], [], 0, stop_after

    def write(self, frame, results, annotated):
        self.seen.append((frame, results))
        self.annotated.append(annotated())
        self.stopped = len(self.seen) == self.stop_after

    def close(self):
        self.closed += 1
        return f"{len(self.seen)} things"


def frame(height=64, width=128, number=0, count=0, stream=0, path="a.jpg"):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 200  # blue
    return Frame(image, path, f"image 1/1 {path}", number, count, stream=stream)


def test_boxes_in_original_pixels():
    sink, runner = Collect(), FakeRunner()
    settings = PredictSettings(image_hw=(64, 128), confidence=0.25)
    report = predict(runner, FakeSource([[frame(128, 256)]]), settings, [sink])
    assert runner.shapes[-1] == (1, 3, 64, 128)  # half the size of the frame
    results = sink.seen[0][1]
    assert results.boxes.tolist() == [[48, 32, 80, 96], [180, 60, 220, 100]]
    assert results.scores.tolist() == pytest.approx([0.9, 0.3]) and results.classes.tolist() == [0, 1]
    assert report.found == Counter(person=1, bus=1) and report.frames == 1 and report.unreadable_files == 2


def test_network_input():
    runner = FakeRunner()
    predict(runner, FakeSource([[frame(70, 128)]]), PredictSettings(image_hw=(128, 128)))
    assert runner.shapes[-1] == (1, 3, 96, 128)
    assert runner.last[0, :, 40, 40].tolist() == [0, 0, 200] and runner.last[0, :, 0, 0].tolist() == [114] * 3


def test_fixed_size_runner():
    runner = FakeRunner()
    runner.fixed_hw = (160, 160)
    predict(runner, FakeSource([[frame(70, 128)]]), PredictSettings(image_hw=(64, 64)))
    assert runner.shapes[-1] == (1, 3, 160, 160)


def test_stream_shapes():
    runner, sink = FakeRunner(), Collect()
    groups = [[frame(stream=0), frame(stream=1)], [frame(stream=0), frame(96, 64, stream=1)]]
    report = predict(runner, FakeSource(groups), PredictSettings(image_hw=(128, 128)), [sink])
    assert runner.shapes[-2:] == [(2, 3, 64, 128), (2, 3, 128, 128)] and report.frames == 4
    assert [results.info.index for _, results in sink.seen] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "classes"),
    [({"confidence": 0.5}, [0]), ({"classes": (1,)}, [1]), ({"max_detections": 1}, [0]), ({"confidence": 0.95}, [])],
)
def test_settings_reach_nms(changes, classes):
    sink = Collect()
    predict(FakeRunner(), FakeSource([[frame()]]), PredictSettings(image_hw=(64, 128), **changes), [sink])
    assert sink.seen[0][1].classes.tolist() == classes


def test_image_is_drawn_once_on_demand():
    drawn = []

    def draw(image, results):
        drawn.append(len(results.boxes))
        return image + 1

    sinks = [Collect(), Collect()]
    predict(FakeRunner(), FakeSource([[frame()]]), PredictSettings(), sinks, draw)
    assert (
        drawn == [2] and (sinks[0].annotated[0] == sinks[1].annotated[0]).all() and sinks[0].annotated[0][0, 0, 1] == 1
    )
    predict(FakeRunner(), FakeSource([[frame()]]), PredictSettings(), [], draw)
    assert drawn == [2]


def test_ctrl_c():
    sink, source = Collect(), FakeSource([[frame()]] * 3, stop_at=2)
    report = predict(FakeRunner(), source, PredictSettings(), [sink])
    assert report.interrupted and report.frames == 2 and source.closed and sink.closed == 1
    assert report.saved == ["2 things"]


def test_sink_can_stop():
    sink = Collect(stop_after=1)
    report = predict(FakeRunner(), FakeSource([[frame()]] * 3), PredictSettings(), [sink])
    assert report.frames == 1 and not report.interrupted


def test_sinks_are_closed_on_error():
    sink, source = Collect(), FakeSource([[frame()]])
    sink.write = lambda *_: (_ for _ in ()).throw(UserError("disk full"))
    with pytest.raises(UserError, match="disk full"):
        predict(FakeRunner(), source, PredictSettings(), [sink])
    assert sink.closed == 1 and source.closed


def test_console_lines(caplog):
    caplog.set_level("INFO", logger="polyolo")
    groups = [[frame(128, 256)], *([frame(number=i, count=150, path="long.mp4")] for i in range(1, 151))]
    report = predict(FakeRunner(), FakeSource(groups), PredictSettings(image_hw=(64, 128)))
    assert len(caplog.messages) == 1  # a long video shows a bar
    assert caplog.messages[0].startswith("image 1/1 a.jpg: 64x128 1 person, 1 bus, ")
    assert caplog.messages[0].endswith("ms")
    assert report.speed().startswith("Speed: ") and report.speed().endswith(" NMS per image at shape (1, 3, 64, 128)")


def test_count_text():
    assert format_counts(Counter(person=4, bus=1)) == "4 persons, 1 bus"
    assert format_counts(Counter()) == "(no detections)"
    assert [plural(name) for name in ("tie", "bus", "bench", "scissors", "wine glass")] == [
        "ties", "buses", "benches", "scissors", "wine glasses"]  # fmt: skip


def test_image_size_rounding():
    runner = FakeRunner()
    assert network_size([640], runner) == (640, 640) and network_size([100, 320], runner) == (128, 320)
    for wrong in ([], [1, 2, 3], [0]):
        with pytest.raises(UserError, match="--imgsz"):
            network_size(wrong, runner)


@pytest.mark.parametrize("changes", [{"confidence": 1.5}, {"iou": -0.1}, {"max_detections": 0}])
def test_invalid_settings(changes):
    with pytest.raises(UserError, match="--"):
        PredictSettings(**changes)


# ----------------------------------------------------------------------------------------------------------------------
# The script


def detect(root, folder, *options, check=None):
    command = [sys.executable, str(root / "detect.py"), *map(str, options)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a small untrained checkpoint."""
    from models.builder import build_network, read_architecture
    from models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save_checkpoint(path, build_network(read_architecture("yolov5n"), 2, ("cat", "dog")), {"task": "detect"})
    return path


def test_help_does_not_load_torch(root, tmp_path):
    detect(root, tmp_path, "--help", check=0)  # fills the byte-code cache
    start = time.perf_counter()
    done = detect(root, tmp_path, "--help", check=0)
    assert time.perf_counter() - start < 2.0
    for option in ("--weights", "--img-size", "--save-format", "--visualize", "--vid-stride", "--line-thickness"):
        assert option in done.stdout


def test_output_files(root, tmp_path, weights):
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "in" / "a.jpg"), image)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"?")
    numbers = ("--img", 64, "--conf", 0, "--iou", 0.9, "--max-det", 3)
    switches = ("--save-txt", "--save-conf", "--save-crop", "--save-csv", "--visualize")
    done = detect(root, tmp_path, "--weights", weights, "--source", "in", *numbers, *switches, check=0)
    run = tmp_path / "runs" / "detect" / "exp"
    assert len((run / "labels" / "a.txt").read_text().splitlines()) == 3
    assert len((run / "predictions.csv").read_text().splitlines()) == 4
    assert cv2.imread(str(run / "a.jpg")).shape == (60, 80, 3)
    assert len(list((run / "crops").rglob("*.jpg"))) == 3
    assert (run / "features" / "a" / "00_Conv.npy").is_file()
    assert "bad.jpg" in done.stderr and "1 file(s) could not be read" in done.stderr
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]  # nothing half-written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nowhere"], "no such file or folder"),
        (["--source", "bad.jpg"], "not an image"),
        (["--source", "bad.jpg", "--weights", "nowhere.pt"], "nowhere.pt"),
        (["--source", "bad.jpg", "--weights", "bad.jpg"], "unknown format"),
        (["--source", "bad.jpg", "--imgsz", "1", "2", "3"], "--imgsz"),
    ],
)
def test_bad_inputs(root, tmp_path, weights, options, message):
    (tmp_path / "bad.jpg").write_bytes(b"?")
    given = options if "--weights" in options else ["--weights", str(weights), *options]
    done = detect(root, tmp_path, *given, check=2)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/detect/*"))


def test_official_weights_detections(root, tmp_path, shared):
    weights, images = shared / "weights" / "yolov5n.pt", shared / "images"
    done = detect(root, tmp_path, "--weights", weights, "--source", images, "--save-txt", "--save-conf", check=0)
    assert "640x480 4 persons, 1 bus" in done.stdout and "384x640 2 persons, 1 tie" in done.stdout
    rows = np.loadtxt(tmp_path / "runs" / "detect" / "exp" / "labels" / "bus.txt")
    assert rows[:, 0].tolist() == [0, 0, 0, 0, 5]
    assert rows[:, 5] == pytest.approx([0.876, 0.805, 0.787, 0.519, 0.492], abs=0.002)
