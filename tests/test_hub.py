"""The Python interface: any image in, results in any form out, nothing fetched unasked."""

import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers_networks import write_networks
from PIL import Image

import hubconf
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from models.network import Network
from tests.helpers_run import ROOT, script
from utils.core import http_client
from utils.core.errors import UserError
from utils.hub.hub_model import load
from utils.hub.image_inputs import common_shape, load_images
from utils.plots.palette import CITYSCAPES

BUS = ROOT.parent / "shared" / "images" / "bus.jpg"
OFFICIAL = ROOT.parent / "shared" / "weights" / "yolov5n.pt"
real = pytest.mark.skipif(not OFFICIAL.exists() or not BUS.exists(), reason="needs the reference weights and image")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "tiny.pt"
    torch.manual_seed(0)
    save_checkpoint(path, build_network(read_architecture("yolov5n"), 3, ("cat", "dog", "bus")), meta={"imgsz": 64})
    return path


@pytest.fixture(scope="module")
def enlivened(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def model(checkpoint):
    model = load(checkpoint, device="cpu")
    model.conf = 0.0  # untrained: everything counts
    model.max_det = 5
    return model


def array(height=48, width=64):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "height", "width"),
    [
        (array(), 48, 64),
        (array().transpose(2, 0, 1), 48, 64),
        (array()[:, :, 0], 48, 64),
        (np.dstack((array(), array()[:, :, :1])), 48, 64),
        (array().astype(np.float32) / 255, 48, 64),
        (Image.fromarray(array()), 48, 64),
        (torch.from_numpy(array()).permute(2, 0, 1), 48, 64),
    ],
    ids=["hwc", "chw", "grey", "rgba", "float", "pil", "torch"],
)
def test_image_input_types(given, height, width):
    (photo,) = load_images(given)
    assert photo.bgr.shape == (height, width, 3)
    expected = array()[:, :, ::-1] if getattr(given, "ndim", 3) == 3 else np.repeat(array()[:, :, :1], 3, 2)
    assert np.array_equal(photo.bgr, expected)


def test_pil_exif_rotation():
    image = Image.fromarray(array())
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert load_images(image)[0].bgr.shape == (64, 48, 3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (7, "unsupported type int"),
        (np.zeros((4, 4, 4, 4)), "unsupported array shape"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 9.0), "floats must be in"),
        ([], "at least one image"),
        ("nowhere.jpg", "nowhere.jpg"),
        ("https://example.com/a.jpg", "model.urls"),
    ],
)
def test_invalid_image_input(wrong, says):
    with pytest.raises(UserError, match=says):
        load_images(wrong)


def test_common_shape():
    assert common_shape([(720, 1280)], 640, 32) == (384, 640)
    assert common_shape([(720, 1280), (1080, 810)], 640, 32) == (640, 640)
    assert common_shape([(10, 1000)], 320, 32) == (32, 320)


def test_box_formats_in_original_pixels(model):
    found = model([array(), array(96, 40)], size=64)
    assert len(found) == 2 and found.s == (2, 3, 64, 64)
    for rows, centred, normal, image in zip(found.xyxy, found.xywh, found.xyxyn, found.ims, strict=True):
        height, width = image.shape[:2]
        assert rows.shape == (5, 6) and (rows[:, :4] >= 0).all()
        assert (rows[:, 2] <= width).all() and (rows[:, 3] <= height).all()
        assert torch.allclose(centred[:, 0], (rows[:, 0] + rows[:, 2]) / 2)
        assert torch.allclose(normal[:, 3] * height, rows[:, 3])
        assert torch.equal(normal[:, 4:], rows[:, 4:])


def test_single_image_matches_batch(model):
    alone, beside = model(array(), size=64), model([array(), array()], size=64)
    assert torch.allclose(alone.xyxy[0], beside.xyxy[1], atol=1e-3)


def test_summary_records_crops_and_saved_images(model, tmp_path, capsys):
    found = model([array(), array()], size=64)
    found.print()
    assert capsys.readouterr().out.startswith("image 1/2: 48x64 ")
    rows = json.loads(found.to_json())
    assert len(rows) == 2 and set(rows[0][0]) == {"xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"}
    folder = found.save(save_dir=tmp_path / "out")
    assert sorted(p.name for p in folder.glob("*.jpg")) == ["image0.jpg", "image1.jpg"]
    drawn = found.render()
    assert drawn[0].shape == (48, 64, 3) and not np.array_equal(drawn[0], found.ims[0])
    crops = found.crop(save=False)
    assert len(crops) == 10 and set(crops[0]) == {"box", "conf", "cls", "label", "im"}
    assert [len(one) for one in found.tolist()] == [1, 1]
    assert torch.equal(next(iter(found)).xyxy[0], found.xyxy[0])


def test_thresholds_and_classes_are_attributes(model):
    model.classes = [1]
    assert set(model(array(), size=64).xyxy[0][:, 5].tolist()) == {1.0}
    model.conf = 0.999
    assert len(model(array(), size=64).xyxy[0]) == 0


def test_batch_tensor_passes_through(model):
    out = model(torch.zeros(2, 3, 64, 64))
    assert set(out) == {"detect"} and out["detect"]["predictions"].shape[0] == 2


def test_pandas_columns(model):
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = model(array(), size=64).pandas().xyxy[0]
    assert list(table.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]


def test_supervision_detections(enlivened):
    package = pytest.importorskip("supervision", reason="supervision is not installed")
    model = load(enlivened["masks"], device="cpu")
    model.conf, model.max_det = 0.0, 4
    found = model(array(), size=64)
    (converted,) = found.supervision()
    assert isinstance(converted, package.Detections) and len(converted) == 4
    assert converted.xyxy.tolist() == found.xyxy[0][:, :4].tolist()
    assert converted.class_id.tolist() == found.xyxy[0][:, 5].tolist()
    assert converted.data["class_name"].tolist() == [("cat", "dog")[index] for index in converted.class_id]
    expected = found.results[0].fine_masks
    assert expected.original(0).any()
    assert all(np.array_equal(mask, expected.original(row)) for row, mask in enumerate(converted.mask))
    model.conf = 1.0
    assert len(model(array(), size=64).supervision()[0]) == 0
    whole = load(enlivened["whole"], device="cpu")(array(), size=64)
    (classes,) = whole.supervision()
    assert isinstance(classes, package.Classifications)
    assert classes.confidence.tolist() == whole.results[0].probabilities.tolist()
    pixels = load(enlivened["pixels"], device="cpu")(array(), size=64)
    (regions,) = pixels.supervision()
    semantic_classes = pixels.semantic_classes(0)
    assert regions.class_id.tolist() == [one["class"] for one in semantic_classes] and len(semantic_classes) > 1
    assert regions.data["class_name"].tolist() == [one["name"] for one in semantic_classes]
    for number, mask in zip(regions.class_id, regions.mask, strict=True):
        assert np.array_equal(mask, pixels.results[0].semantic.numpy() == number)
    rows, columns = np.nonzero(regions.mask[0])
    assert regions.xyxy[0].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_tables_without_boxes(enlivened):
    whole = load(enlivened["whole"], device="cpu")([array(), array()], size=64)
    rows = json.loads(whole.to_json())
    scores = whole.results[0].probabilities
    assert len(rows) == 2 and len(rows[0]) == 5
    assert rows[0][0] == {"name": "abcdefg"[scores.argmax()], "confidence": pytest.approx(scores.max().item())}
    assert f"48x64 {rows[0][0]['name']} {rows[0][0]['confidence']:.2f}, " in str(whole)
    assert [len(rows) for rows in whole.xyxy] == [0, 0] and whole.crop(save=False) == []
    if importlib.util.find_spec("pandas"):
        assert list(whole.pandas().xyxy[0].columns)[:2] == ["xmin", "ymin"]


def test_semantic_results(enlivened):
    found = load(enlivened["pixels"], device="cpu")(array(), size=64)
    classes = found.results[0].semantic.numpy()
    semantic_classes = found.semantic_classes(0)
    assert (
        len(semantic_classes) > 1
        and semantic_classes == found.records(0)
        and sum(one["share"] for one in semantic_classes) == pytest.approx(1)
    )
    for one in semantic_classes:
        assert one["share"] == pytest.approx((classes == one["class"]).mean())
        assert one["name"] == list(CITYSCAPES)[one["class"]]
    assert f"48x64 {len(semantic_classes)} semantic classes" in str(found)
    drawn, largest = found.render()[0], semantic_classes[0]
    place = tuple(np.argwhere(classes == largest["class"])[0])  # far from the legend, which lies below left
    colour = [CITYSCAPES[largest["name"]] >> shift & 255 for shift in (16, 8, 0)]
    assert drawn[place].tolist() == pytest.approx(0.6 * array()[place] + 0.4 * np.array(colour), abs=1)


def test_torch_hub_load(checkpoint):
    model = torch.hub.load(str(ROOT), "custom", str(checkpoint), source="local", _verbose=False, device="cpu")
    assert model.names == {0: "cat", 1: "dog", 2: "bus"}
    network = torch.hub.load(str(ROOT), "custom", str(checkpoint), source="local", autoshape=False, device="cpu")
    assert isinstance(network, Network)


def test_torch_hub_list_and_help():
    entries = ["custom", *(f"yolov5{scale}{more}" for more in ("", "6") for scale in "nsmlx")]
    assert dir(hubconf) == sorted(entries)  # what torch.hub.list and torch.hub.help look at
    assert all(name in getattr(hubconf, name).__doc__ or name == "custom" for name in entries)


def test_package_name_clash(tmp_path):
    (tmp_path / "utils.py").write_text("theirs = True\n")
    program = f"import utils, torch; torch.hub.load({str(ROOT)!r}, 'custom', 'x.pt', source='local')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ImportError: another module named 'utils' is already imported" in done.stderr


def test_batch_matches_single_at_given_shape(model):
    images = [array(), array(96, 40), array(30, 90)]
    together = model(images, size=(96, 96))
    for image, rows in zip(images, together.xyxy, strict=True):
        assert torch.allclose(model(image, size=(96, 96)).xyxy[0], rows, atol=1e-3)


def test_hub_entries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = hubconf.yolov5n(pretrained=False, classes=4, channels=1, autoshape=False, device="cpu")
    assert len(network.names) == 4 and network(torch.zeros(1, 1, 64, 64))
    with pytest.raises(UserError, match=r"yolov5n\.pt"):
        hubconf.yolov5n(device="cpu")


@real
def test_official_network_on_bus_image(tmp_path, monkeypatch):
    (tmp_path / "yolov5n.pt").symlink_to(OFFICIAL)
    monkeypatch.chdir(tmp_path)
    found = hubconf.yolov5n(device="cpu")(BUS)
    assert "4 persons, 1 bus" in str(found) and found.s == (1, 3, 640, 480)
    assert found.xyxy[0][:, 4].tolist() == pytest.approx([0.876, 0.805, 0.787, 0.519, 0.492], abs=0.002)
    transferred = hubconf.yolov5n(classes=5, autoshape=False, device="cpu")
    assert len(transferred.names) == 5


def test_self_test_program(checkpoint):
    assert "image 4/4" in script("hubconf.py", "--model", checkpoint, "--device", "cpu")


# ----------------------------------------------------------------------------------------------------------------------
# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/a.jpg",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest",
        "http://[::1]/a",
        "http://0.0.0.0/",
    ],
)
def test_private_hosts_are_refused(address):
    with pytest.raises(UserError, match="not a public address"):
        http_client.fetch_bytes(address)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://example.com/a", "http://"])
def test_only_http_schemes(address):
    with pytest.raises(UserError, match="not an http"):
        http_client.fetch_bytes(address)


def test_dns_rebinding(monkeypatch):
    asked, connected = [], []

    def rebinding(host, port, **_):
        asked.append(host)
        return [(2, 1, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", port))]

    def connect(address, *_, **__):
        connected.append(address)
        raise ConnectionRefusedError("no network in tests")

    monkeypatch.setattr(http_client.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(http_client.socket, "create_connection", connect)
    with pytest.raises(UserError, match="cannot be fetched"):
        http_client.fetch_bytes("http://rebinding.example/a.png")
    assert connected == [("93.184.215.14", 80)]
    with pytest.raises(UserError, match=r"127\.0\.0\.1 is not a public address"):
        http_client.fetch_bytes("https://rebinding.example/a.png")
    assert len(connected) == 1


class _Site(http.server.BaseHTTPRequestHandler):
    photo = cv2.imencode(".png", array()[:, :, ::-1])[1].tobytes()

    def do_GET(self):
        hops = int(self.path.rsplit("/", 1)[-1] or 0) if self.path.startswith("/hop/") else 0
        if self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
        elif hops:
            self.send_response(302)
            self.send_header("Location", f"/hop/{hops - 1}")
        elif self.path == "/missing":
            self.send_response(404)
        else:
            self.send_response(200)
        self.end_headers()
        if not hops and self.path not in ("/missing", "/inside"):
            self.wfile.write(self.photo)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_redirect_limit(site):
    assert http_client.fetch_bytes(f"{site}/hop/5", allow_private=True) == _Site.photo
    with pytest.raises(UserError, match="more than 5 redirects"):
        http_client.fetch_bytes(f"{site}/hop/6", allow_private=True)


def test_fetch_errors(site):
    for path, says in (("/inside", "not an http"), ("/missing", "404")):
        with pytest.raises(UserError, match=says):
            http_client.fetch_bytes(f"{site}{path}", allow_private=True)
    with pytest.raises(UserError, match="larger than"):
        http_client.fetch_bytes(f"{site}/a.png", allow_private=True, max_bytes=100)


def test_slow_server_times_out(site, monkeypatch):
    monkeypatch.setattr(http_client, "FETCH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(http_client, "_FETCH_CHUNK", 16)
    begin = http_client.time.monotonic()
    ticks = iter(range(1000))
    monkeypatch.setattr(http_client, "time", SimpleNamespace(monotonic=lambda: begin + 0.05 * next(ticks)))
    with pytest.raises(UserError, match=r"not received within 0\.2 s"):
        http_client.fetch_bytes(f"{site}/a.png", allow_private=True)


def test_url_image_when_allowed(site, monkeypatch):
    monkeypatch.setattr(http_client, "is_public", lambda host: True)
    (photo,) = load_images(f"{site}/photo.png", urls=True)
    assert photo.name == "photo.jpg" and np.array_equal(photo.bgr, array()[:, :, ::-1])
