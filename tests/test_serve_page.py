"""The page in a headless Chromium, used as a person would: files are dropped, sliders moved, results taken away."""

import base64
import json
import time
from collections import Counter

import cv2
import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="needs requirements-serve.txt")

from helpers_browser import browsing, chromium  # noqa: E402
from helpers_networks import encoded_image, make_sure, write_networks  # noqa: E402
from helpers_serve import running  # noqa: E402

from utils.ops.panoptic import encode_png  # noqa: E402

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
OPTIONS = ("--conf-thres", "0", "--iou-thres", "0.6", "--max-det", "12", "--max-pixels", "1000000")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    weights = write_networks(tmp_path_factory.mktemp("networks"))
    make_sure(weights["boxes"])
    make_sure(weights["masks"])
    with running(weights.values(), tmp_path_factory.mktemp("place") / "empty", *OPTIONS) as service:
        yield service


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chrome, service):
    chrome.open(f"http://127.0.0.1:{service.port}/")
    chrome.until("models.length")
    chrome.events.clear()
    yield chrome
    assert chrome.faults() == []
    assert all(address.startswith(f"http://127.0.0.1:{service.port}/") for address in chrome.addresses())


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded_image(height=240, width=320))
    return path


def shown(page, model, file):
    """Choose a model, drop a file; return the answer that the page shows."""
    page.run(f"$('model').value = '{model}'; $('model').dispatchEvent(new Event('change'))")
    page.drop("#stage", file)
    page.until("result !== null")
    return page.run("result")


def rows(page):
    return page.run("[...document.querySelectorAll('#results li')].map(row => row.innerText.split('\\n'))")


def pixels(page):
    """Return a number that stands for what the canvas shows."""
    return page.run("canvas.toDataURL()")


@pytest.mark.parametrize("model", ["boxes", "masks", "whole", "pixels"])
def test_drop_image(page, photo, model):
    answer = shown(page, model, photo)
    assert (answer["width"], answer["height"]) == (320, 240)
    assert page.run("[canvas.width, canvas.height]") == [320, 240]
    found = [(thing["name"], f"{thing['confidence']:.2f}") for thing in answer.get("detections", [])]
    found += [(one["name"], f"{one['confidence']:.3f}") for one in answer.get("top5", [])]
    listed = rows(page)
    if model == "pixels":
        assert [row[0] for row in listed] == [one["name"] for one in answer["semantic"]["classes"]]
    else:
        assert [tuple(row) for row in listed] == found and found
    drawn = pixels(page)
    page.run("result = semanticMap = null; draw()")
    assert drawn != pixels(page)  # something had been drawn on the image
    visible = page.run("['conf', 'iou', 'opacity'].filter(id => $(id).offsetParent)")
    assert visible == {"boxes": ["conf", "iou"], "masks": ["conf", "iou", "opacity"], "pixels": ["opacity"]}.get(
        model, []
    )


def test_sliders(page, photo):
    assert page.run("[$('conf').value, $('iou').value]") == ["0", "0.6"]
    things = shown(page, "masks", photo)["detections"]
    middle = sorted(thing["confidence"] for thing in things)[len(things) // 2]
    page.run(f"$('conf').value = {middle:.2f}; $('conf').focus(); result = null")
    page.key("ArrowRight", 39)
    page.until("result !== null")
    threshold = float(page.run("$('conf').value"))
    left = [thing["confidence"] for thing in page.run("result.detections")]
    assert min(left) >= threshold - 1e-5 and len(left) == sum(c >= threshold for c in (t["confidence"] for t in things))
    assert page.run("$('conf-out').textContent") == f"{threshold:.2f}"
    before, asked = pixels(page), len(page.addresses())
    page.run("$('opacity').focus()")
    page.key("ArrowRight", 39)
    assert pixels(page) != before and len(page.addresses()) == asked  # drawn again without a request


def test_copy_and_save_results(page, photo, service, tmp_path):
    answer = shown(page, "boxes", photo)
    origin = f"http://127.0.0.1:{service.port}"
    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=origin)
    page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    page.click("#copy")
    page.until("$('status').textContent.includes('clipboard')")
    assert json.loads(page.run("navigator.clipboard.readText()")) == answer
    for button, name in (("#json", "photo.json"), ("#save", "photo.png")):
        page.click(button)
        end = time.monotonic() + 10
        while not (tmp_path / "saved" / name).exists():
            assert time.monotonic() < end
            time.sleep(0.05)
    assert json.loads((tmp_path / "saved" / "photo.json").read_text()) == answer
    saved = cv2.imread(str(tmp_path / "saved" / "photo.png"))
    assert saved.shape == (240, 320, 3) and not np.array_equal(saved, cv2.imread(str(photo)))


def test_page_error_messages(page, photo, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("no image")
    page.drop("#stage", text)
    page.until("$('status').classList.contains('bad')")
    assert "not an image" in page.run("$('status').textContent")
    large = tmp_path / "large.png"
    large.write_bytes(encoded_image(height=1001, width=1000))
    page.drop("#stage", large)
    page.until("$('status').textContent.includes('422')")
    assert "1000000" in page.run("$('status').textContent")
    assert not page.run("$('list').offsetParent")
    shown(page, "boxes", photo)
    assert not page.run("$('status').classList.contains('bad')")
    page.events[:] = [event for event in page.events if "422" not in json.dumps(event)]  # the browser logs that too


def test_unreadable_file_removes_the_result_shown(page, photo, tmp_path):
    shown(page, "boxes", photo)
    page.run("answerOfFirst = predict(); undefined")  # still on its way when the next file arrives
    text = tmp_path / "words.txt"
    text.write_text("no image")
    page.drop("#stage", text)
    page.until("$('status').classList.contains('bad')")
    page.run("answerOfFirst")
    assert page.run("[image, result, semanticMap]") == [None, None, None]
    assert not page.run("$('list').offsetParent || canvas.offsetParent") and page.run("$('hint').offsetParent !== null")
    assert page.run("$('status').classList.contains('bad')")


def test_one_colour_per_instance(page, photo):
    objects = shown(page, "masks", photo)["detections"]
    colours = "[...document.querySelectorAll('#results i')].map(dot => dot.style.background)"
    by_class, before = page.run(colours), pixels(page)
    assert len(set(by_class)) == len({one["class"] for one in objects}) < len(objects)
    page.click("#instance")
    assert len(set(page.run(colours))) == len(objects) and pixels(page) != before
    assert page.run("new Set(Array.from({length: 24}, (_, i) => instanceColour(i))).size") == 24
    page.click("#instance")
    assert page.run(colours) == by_class and pixels(page) == before
    shown(page, "pixels", photo)
    assert not page.run("$('instance').offsetParent")


def test_panoptic_map_with_legend(page, photo, tmp_path):
    ids = np.zeros((240, 320), np.int32)  # void, one thing, stuff with an id of two bytes
    ids[40:120, 40:160], ids[120:] = 1, 300
    png = base64.b64encode(encode_png(ids)).decode()
    segments = [
        {"id": 1, "class": 0, "name": "car", "thing": True, "area": 9600, "color": "#ff0000", "confidence": 0.9},
        {"id": 300, "class": 1, "name": "road", "thing": False, "area": 38400, "color": "#0000ff"},
    ]
    image = {"name": "", "width": 320, "height": 240, "detections": [], "panoptic": {"segments": segments, "png": png}}
    heads = {"segment": {"classes": ["car"], "masks": True}, "semantic": {"classes": ["car", "road"]}}
    page.run("visible = () => $('panoptic-row').offsetParent !== null; undefined")
    assert not page.run("visible()")  # a model of boxes has none
    page.run(f"models = [{{name: 'pan', heads: {json.dumps(heads)}}}]; $('model').replaceChildren(new Option('pan'))")
    page.run(f"asked = ''; call = async path => (asked = path, {{images: [{json.dumps(image)}]}}); showControls()")
    assert page.run("visible()")
    page.drop("#stage", photo)
    page.until("result !== null")
    assert "panoptic" not in page.run("asked")
    page.run("$('opacity').value = 1; result = null")
    page.click("#panoptic")
    page.until("result !== null")
    assert "&panoptic=true" in page.run("asked") and not page.run("$('instance').offsetParent")
    assert rows(page) == [["Things"], ["car", "0.90"], ["Stuff"], ["road", "50.0 %"]]
    at = "[...context.getImageData({}, {}, 1, 1).data.slice(0, 3)]"
    assert [page.run(at.format(x, y)) for x, y in ((50, 50), (10, 200))] == [[255, 0, 0], [0, 0, 255]]
    assert page.run(at.format(10, 119)) == [255, 255, 255]  # the border between two segments
    assert page.run(at.format(5, 5)) == cv2.imread(str(photo))[5, 5, ::-1].tolist()  # void
    assert page.run("[panopticMap.nameAt(50, 50), panopticMap.nameAt(10, 200)]") == ["car", "road"]


def test_headings_only_between_kinds_of_results(page):
    semantic = "{classes: [{class: 0, name: 'road', color: '#804080', share: 1}]}"
    detection = "{class: 0, name: 'car', color: '#00008e', confidence: .5, box: [0, 0, 9, 9]}"
    page.run(f"result = {{detections: [], semantic: {semantic}}}; list()")
    assert rows(page) == [["road", "100.0 %"]]
    # a bar, not the background of the row, which looks like a selection
    assert page.run("getComputedStyle(document.querySelector('#results li')).backgroundSize") == "100% 2px"
    page.run(f"result = {{detections: [{detection}], semantic: {semantic}}}; list()")
    assert rows(page) == [["Detections"], ["car", "0.50"], ["Semantic classes"], ["road", "100.0 %"]]
    page.run("result = {detections: []}; list()")
    assert rows(page) == [["no detections"]]


def test_long_model_names_are_shown_whole(page):
    assert page.run("$('model-info').textContent").split(", ")[0] == "detect"
    name = "a_network_with_a_name_longer_than_the_list_" * 3
    page.run(f"models = [{{name: '{name}', heads: {{detect: {{classes: ['x'], masks: false}}}}}}]")
    page.run("$('model').replaceChildren(new Option(models[0].name)); showControls()")
    assert page.run("$('model-info').textContent") == f"{name} (detect, 1 class)"
    assert page.run("$('model-info').scrollWidth <= $('model-info').clientWidth")


def test_api_page_sends_requests(chrome, service, photo):
    chrome.open(f"http://127.0.0.1:{service.port}/docs")
    chrome.until("document.querySelectorAll('details').length >= 5")
    chrome.events.clear()
    chrome.run("""const titles = [...document.querySelectorAll('h2')];
        const section = titles.find(title => title.textContent === 'POST/v1/predict').parentNode;
        section.querySelector('details').open = true; section.id = 'predict'; undefined""")
    fields = chrome.run("[...document.querySelectorAll('#predict [name]')].map(field => field.name)")
    assert {"model", "conf", "iou", "classes", "masks"} <= set(fields)
    root = chrome.send("DOM.getDocument")["root"]["nodeId"]
    node = chrome.send("DOM.querySelector", nodeId=root, selector="#predict input[type=file]")["nodeId"]
    chrome.send("DOM.setFileInputFiles", files=[str(photo)], nodeId=node)
    chrome.run("""document.querySelector('#predict [name=model]').value = 'boxes';
        document.querySelector('#predict [name=classes]').value = '0, 1';
        document.querySelector('#predict [name=agnostic]').value = 'true'""")
    chrome.click("#predict button")
    text = chrome.until("document.querySelector('#predict .answer').textContent")
    first, status, _, body = text.split("\n", 3)
    assert first == "POST v1/predict?model=boxes&classes=0&classes=1&agnostic=true" and status.startswith("200 OK, ")
    assert {one["class"] for one in json.loads(body)["images"][0]["detections"]} <= {0, 1}
    assert chrome.faults() == []
    assert all(address.startswith(f"http://127.0.0.1:{service.port}/") for address in chrome.addresses())
    chrome.run("document.querySelector('#predict [name=conf]').value = '7'")
    chrome.click("#predict button")
    chrome.until("document.querySelector('#predict .answer').classList.contains('bad')")
    assert "422" in chrome.run("document.querySelector('#predict .answer').textContent")


def test_keyboard_navigation(page, photo):
    page.send("Page.setInterceptFileChooserDialog", enabled=True)
    page.run("document.querySelector('header a').focus()")
    page.key("Tab", 9)
    assert page.run("document.activeElement.id") == "open"
    page.key("Enter", 13, "\r")
    page.run("0")
    opened = [event for event in page.events if event.get("method") == "Page.fileChooserOpened"]
    assert len(opened) == 1
    page.send("DOM.setFileInputFiles", files=[str(photo)], backendNodeId=opened[0]["params"]["backendNodeId"])
    page.until("result !== null")
    reached = Counter()
    for _ in range(16):
        page.key("Tab", 9)
        reached[page.run("document.activeElement.id")] += 1
    assert {"model", "conf", "iou", "instance", "again", "capture", "results", "copy", "json", "save"} <= set(reached)
    page.send("Page.setInterceptFileChooserDialog", enabled=False)


def test_camera(page):
    page.click("#camera")
    page.until("result !== null && live")
    first = pixels(page)
    page.until(f"canvas.toDataURL().length && canvas.toDataURL() !== {json.dumps(first)}")
    page.click("#stop")
    assert not page.run("live") and page.run("video.srcObject.getTracks().every(track => track.readyState === 'ended')")
    assert page.run("$('capture').offsetParent !== null && $('stop').offsetParent === null")


@pytest.mark.parametrize("dark", [False, True])
def test_phone_layout_and_contrast(chrome, service, photo, dark):
    chrome.open(f"http://127.0.0.1:{service.port}/", width=390, height=844, dark=dark, phone=True)
    chrome.until("models.length")
    shown(chrome, "masks", photo)
    assert chrome.run("document.documentElement.scrollWidth") <= 390
    light = """(text => {
      const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const [r, g, b] = text.match(/[\\d.]+/g).map(part);
      return .2126 * r + .7152 * g + .0722 * b })"""
    for selector, bad in (("#status", False), ("#status", True), ("label", False), ("#copy", False)):
        chrome.run(f"showStatus('words', {str(bad).lower()})")
        ink, back = (
            chrome.run(f"{light}(getComputedStyle({where}).{what})")
            for where, what in (
                (f"document.querySelector('{selector}')", "color"),
                ("document.body", "backgroundColor"),
            )
        )
        assert (max(ink, back) + 0.05) / (min(ink, back) + 0.05) > 4.5, selector  # WCAG AA
