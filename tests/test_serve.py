"""The service: what it answers, what it refuses and how, and that neither clients nor networks bring it down."""

import base64
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="needs requirements-serve.txt")

from helpers_networks import NETWORKS, encoded_image, write_networks  # noqa: E402
from helpers_serve import driven, form, serving  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco  # noqa: E402

from tools.service import requests as service_requests  # noqa: E402
from tools.service.allocator import release_free_memory  # noqa: E402
from tools.service.predictor import Predictor  # noqa: E402
from tools.service.schema import PredictionResponse  # noqa: E402
from tools.service.service_settings import ServiceSettings, model_name  # noqa: E402
from tools.service.truncated_images import jpeg_lacks_end  # noqa: E402
from utils.core.errors import UserError  # noqa: E402
from utils.core.files import ROOT  # noqa: E402
from utils.datasets.image_files import decode_image  # noqa: E402
from utils.hub.hub_model import load  # noqa: E402
from utils.plots.palette import CITYSCAPES  # noqa: E402


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def client(networks):
    with serving(networks.values(), max_images=4, max_body_mb=1, max_pixels=1_000_000) as client:
        yield client


def documented(client, answer, route="/v1/predict"):
    """The status of an answer is in the API's own description; return the answer's JSON."""
    described = client.get("/openapi.json").json()["paths"][route]
    assert str(answer.status_code) in next(iter(described.values()))["responses"], answer.text
    body = answer.json()
    if answer.status_code >= 400:
        assert set(body) == {"detail"} and isinstance(body["detail"], str)
    return body


def predicted(client, *photos, **parameters):
    answer = client.post("/v1/predict", params=parameters, files=form(*photos))
    assert answer.status_code == 200, answer.text
    body = documented(client, answer)
    PredictionResponse.model_validate(body)
    return body["images"]


def alone(networks, name, data, **attributes):
    """Return the results of the Python interface for the same image."""
    model = load(networks[name], device="cpu")
    for key, value in {"conf": 0.0, "max_det": 300, **attributes}.items():
        setattr(model, key, value)
    return model(decode_image(data, "x")[:, :, ::-1], size=64)


# ----------------------------------------------------------------------------------------------------------------------
# Answers


def test_boxes_match_python_api(client, networks):
    data = encoded_image()
    (image,) = predicted(client, data, model="boxes", max_det=5)
    assert (image["name"], image["width"], image["height"]) == ("0.png", 64, 48)
    found = alone(networks, "boxes", data, max_det=5).xyxy[0]
    assert len(found) == 5
    for row, thing in zip(found.tolist(), image["detections"], strict=True):
        assert thing["box"] == pytest.approx(row[:4], abs=0.01) and thing["confidence"] == pytest.approx(
            row[4], abs=1e-4
        )
        assert thing["class"] == row[5] and thing["name"] == NETWORKS["boxes"][1][int(row[5])]


def test_query_parameters(client):
    data = encoded_image()
    scores = [thing["confidence"] for thing in predicted(client, data)[0]["detections"]]
    middle = sorted(scores)[len(scores) // 2]
    assert len(predicted(client, data, max_det=2)[0]["detections"]) == 2
    surer = [thing["confidence"] for thing in predicted(client, data, conf=middle)[0]["detections"]]
    assert 0 < len(surer) < len(scores) and min(surer) >= middle - 1e-5
    assert {thing["class"] for thing in predicted(client, data, classes=[1, 2])[0]["detections"]} <= {1, 2}
    few = predicted(client, data, iou=0.01, agnostic=True)[0]["detections"]
    assert len(few) < len(predicted(client, data, iou=0.99)[0]["detections"])
    assert predicted(client, data, conf=1)[0]["detections"] == []


def test_raw_body_and_form(client):
    first, second = encoded_image(1), encoded_image(2, 40, 80)
    together = predicted(client, first, second)
    raw = client.post("/v1/predict", content=second, headers={"Content-Type": "image/png"}).json()["images"][0]
    assert raw["name"] == "image" and raw["detections"] == together[1]["detections"]
    assert [(one["name"], one["width"]) for one in together] == [("0.png", 64), ("1.png", 80)]
    assert together[0]["detections"] == predicted(client, first)[0]["detections"] != together[1]["detections"]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
def test_mask_formats(client, networks):
    data = encoded_image()
    options = {"model": "masks", "max_det": 4}
    things = predicted(client, data, masks="both", **options)[0]["detections"]
    expected = alone(networks, "masks", data, max_det=4).results[0].fine_masks
    filled = 0
    for row, thing in enumerate(things):
        mask = coco.decode({**thing["rle"], "counts": thing["rle"]["counts"].encode()}).astype(bool)
        assert mask.shape == (48, 64) and np.array_equal(mask, expected.original(row))
        if not thing["polygon"]:
            assert not mask.any()
            continue
        drawn = cv2.fillPoly(np.zeros((48, 64), np.uint8), [np.array(thing["polygon"])], 1).astype(bool)
        outline = np.array(thing["polygon"])
        assert mask[outline[:, 1], outline[:, 0]].all()  # the outline runs through pixels of the mask
        filled += (drawn & mask).sum()
    assert filled > 0
    assert all("rle" not in one and "polygon" in one for one in predicted(client, data, **options)[0]["detections"])
    rle = predicted(client, data, masks="rle", **options)[0]["detections"]
    assert [one["rle"] for one in rle] == [one["rle"] for one in things] and "polygon" not in rle[0]
    assert not {"rle", "polygon"} & predicted(client, data, masks="none", **options)[0]["detections"][0].keys()


def test_classification_top5(client, networks):
    data = encoded_image(height=80, width=80)
    (image,) = predicted(client, data, model="whole")
    probabilities = alone(networks, "whole", data).results[0].probabilities
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [row["class"] for row in image["top5"]] == order
    assert [row["name"] for row in image["top5"]] == ["abcdefg"[index] for index in order]
    assert [row["confidence"] for row in image["top5"]] == pytest.approx(probabilities[order].tolist(), abs=2e-5)
    assert "detections" not in image and "semantic" not in image


def test_semantic_response(client, networks):
    data = encoded_image()
    (image,) = predicted(client, data, model="pixels")
    png = np.frombuffer(base64.b64decode(image["semantic"]["png"]), np.uint8)
    classes = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert np.array_equal(classes, alone(networks, "pixels", data).results[0].semantic.numpy())
    semantic_classes = image["semantic"]["classes"]
    assert len(semantic_classes) > 1 and sum(one["share"] for one in semantic_classes) == pytest.approx(1, abs=1e-3)
    for one in semantic_classes:
        assert one["share"] == pytest.approx((classes == one["class"]).mean(), abs=1e-5)
        assert one["name"] == list(CITYSCAPES)[one["class"]]
        assert one["color"] == f"#{CITYSCAPES[one['name']]:06x}"
    assert "png" not in predicted(client, data, model="pixels", pixels=False)[0]["semantic"]


def test_models_health_and_metrics(client):
    about = {one["name"]: one for one in client.get("/v1/models").json()["models"]}
    assert list(about) == list(NETWORKS) and about["boxes"]["size"] == 64
    assert about["masks"]["heads"] == {"segment": {"classes": ["cat", "dog"], "masks": True}}
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    predicted(client, encoded_image())
    text = client.get("/metrics").text
    assert re.search(r'polyolo_requests_total\{route="/v1/predict",status="200"\} [1-9]', text)
    assert re.search(r"^polyolo_batch_images_count [1-9]", text, re.MULTILINE)
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    assert 'route="elsewhere",status="404"} ' in client.get("/metrics").text  # not one counter per address


def test_yolov5_rest_api(client):
    answer = client.post("/v1/object-detection/boxes", files=form(encoded_image()))
    rows = documented(client, answer, "/v1/object-detection/{model}")
    keys = ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert rows and all(list(row) == keys for row in rows)
    assert client.post("/v1/object-detection/whole", files=form(encoded_image())).status_code == 404
    assert client.post("/v1/object-detection/nothing", files=form(encoded_image())).status_code == 404


def test_pages_are_self_contained(client):
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        links = set(re.findall(r"https?://[^\s'\"`]+", answer.text))
        assert links <= {"http://www.w3.org/2000/svg"}  # a name, not a place
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", answer.text)
    assert client.get("/favicon.ico").status_code == 204


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"conf": "1.5"}, 422, "conf: "),
        ({"conf": "nan"}, 422, "conf: "),
        ({"iou": "-0.1"}, 422, "iou: "),
        ({"max_det": "0"}, 422, "max_det: "),
        ({"classes": "x"}, 422, "classes.0: "),
        ({"size": "4000"}, 422, "size: the maximum is 1280, got 4000"),
        ({"size": "1"}, 422, "size: "),
        ({"masks": "png"}, 422, "masks: "),
        ({"conf_thres": "0.5"}, 422, "conf_thres: "),
        ({"model": "none such"}, 404, "unknown model 'none such'; GET /v1/models"),
    ],
)
def test_invalid_parameters(client, parameters, status, says):
    answer = client.post("/v1/predict", params=parameters, files=form(encoded_image()))
    assert documented(client, answer)["detail"].startswith(says) and answer.status_code == status


SEND = "send image/... or multipart/form-data with files (curl -F image=@photo.jpg)"
BROKEN = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400, "empty"),
        ({"content": b"hello", "headers": {"Content-Type": "image/png"}}, 400, "not an image"),
        ({"content": encoded_image()[:200], "headers": {"Content-Type": "image/png"}}, 400, "truncated PNG"),
        ({"content": encoded_image(), "headers": {"Content-Type": "application/json"}}, 415, SEND),
        ({"content": encoded_image()}, 415, SEND),
        ({"data": {"image": "no file"}}, 415, SEND),
        ({"files": form(b"")}, 400, "empty file"),
        ({"files": form(*[encoded_image()] * 5)}, 413, "Too many files"),
        ({"files": form(encoded_image()), "data": {"conf": "0.1"}}, 422, "'conf'"),
        (
            {"files": form(encoded_image()), "data": {"url": "http://127.0.0.1/a.png"}},
            400,
            "downloads from URLs are disabled",
        ),
        ({"content": b"--x--\r\n", "headers": BROKEN}, 400, "no image in the form"),
        ({"content": b"rubbish", "headers": BROKEN}, 400, "multipart"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"--x\r\nA: b\r\n\r\n\r\n--x--\r\n", "headers": BROKEN}, 400, "Content-Disposition"),
        ({"files": form(encoded_image(height=1001, width=1000))}, 422, "more than 1000000"),
        ({"content": bytes(2**20 + 1), "headers": {"Content-Type": "image/png"}}, 413, "larger than 1 MiB"),
    ],
)
def test_invalid_bodies(client, request_, status, says):
    answer = client.post("/v1/predict", **request_)
    assert says in documented(client, answer)["detail"] and answer.status_code == status


@pytest.mark.parametrize("charset", ["nonsense", "idna", "undefined", "hex", "utf-16"])
def test_form_character_sets(client, charset):
    text = b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"; filename="\xff"\r\n\r\nhello\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    assert client.post("/v1/predict", content=text, headers={"Content-Type": kind}).status_code == 400


def test_chunked_body_limit(client):
    taken = 0

    def endless():
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield bytes(2**16)

    for kind in ("image/png", "multipart/form-data; boundary=x"):
        answer = client.post("/v1/predict", content=endless(), headers={"Content-Type": kind})
        assert answer.status_code == 413 and answer.headers["connection"] == "close"
    assert taken > 16


def test_allowed_methods(client):
    assert client.get("/v1/predict").status_code == 405 and client.delete("/v1/models").status_code == 405


def test_uploads_stay_in_memory(client, monkeypatch):
    def refuse(*_):
        raise AssertionError("a file was written")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    noise = np.random.default_rng(0).integers(0, 255, (560, 560, 3), np.uint8)
    data = cv2.imencode(".png", noise)[1].tobytes()
    assert 0.8 < len(data) / 2**20 < 1
    monkeypatch.setattr(
        service_requests._InMemoryParser, "spool_max_size", service_requests._InMemoryParser.spool_max_size
    )
    assert predicted(client, data)[0]["width"] == 560


def test_url_inputs(networks, monkeypatch):
    with serving([networks["boxes"]], allow_urls=True, max_images=2) as client:
        body = b'--x\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttp://127.0.0.1/a.png\r\n--x--\r\n'
        answer = client.post("/v1/predict", content=body, headers=BROKEN)
        assert answer.status_code == 400 and "not a public address" in answer.json()["detail"]
        asked = []

        def fetched(address, allow_private, max_bytes):
            asked.append((address, allow_private, max_bytes))
            return encoded_image()

        monkeypatch.setattr(service_requests, "fetch_bytes", fetched)
        body = b'--x\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttps://example.com/a.png\r\n'
        answer = client.post("/v1/predict", content=body + b"--x--\r\n", headers=BROKEN)
        assert answer.json()["images"][0]["name"] == "https://example.com/a.png"
        assert client.post("/v1/predict", content=body * 3 + b"--x--\r\n", headers=BROKEN).status_code == 413
        assert asked == [("https://example.com/a.png", False, 16 * 2**20)]


def test_api_key(networks):
    with serving([networks["boxes"]], api_key="secret") as client:
        for given in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "sécret".encode()}):
            answer = client.post("/v1/predict", params={"conf": 9}, files=form(encoded_image()), headers=given)
            assert answer.status_code == 401 and documented(client, answer)
            assert client.get("/v1/models", headers=given).status_code == 401
        assert client.get("/v1/models", headers={"X-API-Key": "secret"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200
        assert "APIKeyHeader" in client.get("/openapi.json").json()["components"]["securitySchemes"]


# ----------------------------------------------------------------------------------------------------------------------
# Load and faults


class Slow:
    """Holds the network back until it is let go, and notes the sizes of batches."""

    def __init__(self):
        self.go, self.entered, self.sizes = threading.Event(), threading.Event(), []

    def __call__(self, predictor):
        work = predictor.process_batch

        def held(key, images):
            self.sizes.append(len(images))
            self.entered.set()
            assert self.go.wait(20)
            return work(key, images)

        predictor.process_batch = held


def test_concurrent_requests_share_batches(networks):
    slow = Slow()
    photos = [encoded_image(seed) for seed in range(5)] + [encoded_image(9, 64, 40)]
    with serving([networks["boxes"]], slow, max_batch=4) as client, ThreadPoolExecutor(6) as pool:
        first = pool.submit(predicted, client, photos[0], max_det=3)
        assert slow.entered.wait(10)
        others = [pool.submit(predicted, client, one, max_det=3) for one in photos[1:]]
        while client.get("/health").json()["waiting"] < 5:
            time.sleep(0.01)
        slow.go.set()
        together = [first.result()[0], *(other.result()[0] for other in others)]
        assert slow.sizes == [1, 4, 1]  # the last has another shape
        text = client.get("/metrics").text
        assert (
            'polyolo_batch_images_bucket{le="3.0"} 2.0' in text and 'polyolo_batch_images_bucket{le="4.0"} 3.0' in text
        )
        for data, image in zip(photos, together, strict=True):
            (single,) = predicted(client, data, max_det=3)
            for one, other in zip(single["detections"], image["detections"], strict=True):
                assert one["box"] == pytest.approx(other["box"], abs=0.02) and one["class"] == other["class"]


def test_large_images_use_smaller_batches(networks):
    predictor = Predictor(ServiceSettings(weights=(str(networks["boxes"]),), device="cpu", max_batch=8))
    assert [predictor.max_batch_size(("boxes", (side, side))) for side in (64, 640, 1280, 4096)] == [8, 8, 2, 1]


def test_free_memory_is_returned_when_idle(networks, monkeypatch):
    calls = []
    monkeypatch.setattr("tools.service.app.release_free_memory", lambda: calls.append(1))
    monkeypatch.setattr("tools.service.batching.IDLE_S", 0.3)
    with serving([networks["boxes"]]) as client:
        for number in (1, 2):
            predicted(client, encoded_image())
            time.sleep(0.8)
            assert len(calls) == number  # once, however long nothing comes
    assert release_free_memory() in (True, False)  # the real one; where nothing can be given back it says so


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_one_heap_stays_level_without_page_faults():
    """Blocks as of layers, whose sizes change with the shape of each batch, beside small blocks that stay longer."""
    program = """
import random, resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from tools.service.allocator import keep_one_heap
assert not sys.argv[1:] or keep_one_heap()
draw, kept = random.Random(0), []
def batch():
    held = []
    for layer in range(12):
        held.append(torch.empty(draw.randrange(2**20, 7 * 2**20)))  # up to 28 MiB of floats
        held[-1][::1024] = 1  # every page
        kept.append(bytearray(draw.randrange(500, 60_000)))
        del held[:-4]
    del kept[:-60]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
with ThreadPoolExecutor(1) as pool:
    for _ in range(80):
        pool.submit(batch).result()
    faults, memory = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resident()
    for _ in range(80):
        pool.submit(batch).result()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / 80, resident() - memory)
"""

    def measure(*more):
        line = [sys.executable, "-c", program, *more]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
        return [float(word) for word in done.stdout.split()]

    # means of 5 processes: where the system places the heap changes the faults of one tenfold
    faults, growth = (sum(values) / 5 for values in zip(*(measure("one heap") for _ in range(5)), strict=True))
    faults_before = sum(measure()[0] for _ in range(5)) / 5
    assert growth < 100 and 4 * faults < faults_before  # the heap grows by holes for a while


def jpeg(**options):
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8), (320, 240))
    image, preview = Image.fromarray(pixels), io.BytesIO()
    image.resize((64, 48)).save(preview, "JPEG")
    written = io.BytesIO()
    exif = b"Exif\0\0" + preview.getvalue()  # has an end marker of its own, near the end of small files
    image.save(written, "JPEG", exif=exif, **options)
    return written.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 20}])
def test_truncated_jpeg_is_400(client, options):
    whole = jpeg(**options)
    headers = {"Content-Type": "image/jpeg"}
    assert client.post("/v1/predict", content=whole, headers=headers).status_code == 200
    for fraction in (0.999, 0.9, 0.6, 0.45):
        answer = client.post("/v1/predict", content=whole[: int(fraction * len(whole))], headers=headers)
        assert answer.status_code == 400 and "truncated" in documented(client, answer)["detail"]


@pytest.mark.parametrize("form_of", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_of_other_formats_are_400(client, form_of):
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(written, form_of)
    content = written.getvalue()[: int(0.7 * len(written.getvalue()))]
    answer = client.post("/v1/predict", content=content, headers={"Content-Type": "image/png"})
    assert answer.status_code == 400


def test_jpeg_lacks_end(coco128):
    assert not any(jpeg_lacks_end(path.read_bytes()) for path in sorted(coco128.rglob("*.jpg"))[:40])
    assert not jpeg_lacks_end(b"") and not jpeg_lacks_end(b"no image")
    assert jpeg_lacks_end(b"\xff\xd8") and jpeg_lacks_end(b"\xff\xd8\xff\xff") and jpeg_lacks_end(b"\xff\xd8\xff\xda")
    assert not jpeg_lacks_end(b"\xff\xd8\xff\xda\0\2\xff\0\xff\xd0\xff\xff\xd9")


def test_full_queue_is_503(networks):
    slow = Slow()
    with serving([networks["boxes"]], slow, max_queue=2, max_images=2) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(predicted, client, encoded_image(), encoded_image())
        assert slow.entered.wait(10)
        answer = client.post("/v1/predict", content=b"never looked at", headers={"Content-Type": "image/png"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and documented(client, answer)
        slow.go.set()
        assert len(first.result()) == 2
        assert len(predicted(client, encoded_image())) == 1


def test_inference_timeout_is_504(networks):
    slow = Slow()
    with serving([networks["boxes"]], slow, timeout=0.3, max_batch=1) as client, ThreadPoolExecutor(2) as pool:
        late = [pool.submit(client.post, "/v1/predict", files=form(encoded_image())) for _ in range(2)]
        assert [one.result().status_code for one in late] == [504, 504]
        assert slow.sizes == [1]
        slow.go.set()
        assert len(predicted(client, encoded_image())) == 1
        assert slow.sizes == [1, 1]  # the second of the late ones never went through


def test_encoding_timeout_is_504(networks, monkeypatch):
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000)
    monkeypatch.setattr("tools.service.responses.time", later)
    with serving([networks["masks"]]) as client:
        assert client.post("/v1/predict", files=form(encoded_image())).status_code == 504
        assert client.post("/v1/predict?masks=none", files=form(encoded_image())).status_code == 200


def test_slow_client_is_408(networks):
    settings = ServiceSettings(weights=(str(networks["boxes"]),), device="cpu", timeout=0.3)
    part, end = ({"type": "http.request", "body": encoded_image()[:99], "more_body": more} for more in (True, False))
    whole = {"type": "http.request", "body": encoded_image(), "more_body": False}
    slow = Slow()

    def fresh():
        from tools.service.app import build_app

        predictor = Predictor(settings)
        slow(predictor)
        return build_app(settings, predictor)

    assert driven(fresh(), [part, 5, end]) == 408
    app = fresh()
    threading.Timer(0.25, slow.go.set).start()
    assert driven(app, [whole, 0.1, {"type": "http.disconnect"}]) == 499
    assert app.state.service.batcher._reserved == 0
    assert driven(fresh(), [part, {"type": "http.disconnect"}]) == 499


def test_failing_network_is_500(networks, caplog):
    def break_on_black(predictor):
        work = predictor.process_batch

        def fails(key, images):
            if any(image.pixels.float().mean() < 1 for image in images):
                raise AttributeError("black images break it")  # of an unexpected type
            return work(key, images)

        predictor.process_batch = fails

    black = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    with serving([networks["boxes"]], break_on_black, max_wait_ms=200) as client, ThreadPoolExecutor(3) as pool:
        answers = [
            pool.submit(client.post, "/v1/predict", files=form(one)) for one in (encoded_image(0, 64, 64), black)
        ]
        good, bad = (answer.result() for answer in answers)
        assert bad.status_code == 500 and "inference failed" in documented(client, bad)["detail"]
        assert good.status_code == 200  # though they shared a batch
        assert len(predicted(client, encoded_image())) == 1


def test_unexpected_error_is_500(networks, monkeypatch):
    with serving([networks["boxes"]]) as client:
        monkeypatch.setattr("tools.service.app.encode_result", lambda *_: {"no": object()})
        answer = client.post("/v1/predict", files=form(encoded_image()))
        assert answer.status_code == 500 and answer.json() == {
            "detail": "internal error (TypeError); see the log of the service"
        }
        assert 'status="500"' in client.get("/metrics").text
        monkeypatch.undo()
        assert len(predicted(client, encoded_image())) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"conf_thres": 2}, "--conf-thres expects a number from 0 to 1, got 2"),
        ({"timeout": float("nan")}, "--timeout expects a number from 0.001 to 86400, got nan"),
        ({"max_batch": 0}, "--max-batch expects a number from 1 to 1024, got 0"),
        ({"port": 70000}, "--port expects a number from 0 to 65535, got 70000"),
        ({"imgsz": 8}, "--imgsz expects a number from 32"),
        ({"max_images": 9, "max_queue": 8}, "--max-images 9 exceeds --max-queue 8"),
    ],
)
def test_invalid_settings(wrong, says):
    with pytest.raises(UserError, match=re.escape(says)):
        ServiceSettings(**wrong)


def test_model_names(networks, tmp_path):
    assert model_name("a/yolov5n.pt") == "yolov5n" and model_name("runs/train/exp3/weights/best.pt") == "exp3"
    twin = tmp_path / "boxes.pt"
    twin.write_bytes(networks["boxes"].read_bytes())
    with pytest.raises(UserError, match="the model name 'boxes' is already taken"):
        Predictor(ServiceSettings(weights=(str(networks["boxes"]), str(twin)), device="cpu"))


def test_json_encoding(networks, tmp_path):
    weights = tmp_path / "größe.pt"
    weights.write_bytes(networks["whole"].read_bytes())
    with serving([weights]) as client:
        answer = client.post("/v1/predict", files=form(encoded_image()))
        assert answer.content.startswith('{"model":"größe",'.encode()) and json.loads(answer.content)
        assert torch.get_num_threads() > 0
