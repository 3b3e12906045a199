"""Corpus of bad files and folders, and a program that reads them all with a time limit for each.

`python tests/corpus.py FOLDER` writes the corpus below FOLDER, reads it, and prints a JSON line for each entry.
"""

import io
import json
import os
import signal
import sys
import tarfile
import time
import zipfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from utils.core.cli import _USER_ERRORS, one_line
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.datasets.fetch.archives import extract
from utils.datasets.image_files import ImageFault, read_image
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.semantic_scan import build_semantic_index
from utils.datasets.sources.frame_sources import open_source

LIMIT_S = 20
GOOD = "train: images\nval: images\nnames: [a, b]\n"
JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
PNG = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))[1].tobytes()
MASK = cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1].tobytes()
WORDS = (
    *(
        "0",
        "0.5",
        "-1",
        "nan",
        "inf",
        "1e999",
        "x",
        "[",
        "]",
        "{",
        "}",
        ":",
        "-",
        ",",
        "#",
        "&",
        "*",
        "!",
        "|",
        ">",
        "'",
    ),
    *('"', "%", "@", "`", "\t", "\0", "\x85", "\u2028", "💥", "~", "null", "yes", "0x1F", "1_0", "<<"),
)


def write_set(folder, **files):
    """Write a data set of three good images, and files over it: bytes, text, or a link to another path."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for i in range(3):
        (folder / "images" / f"{i}.jpg").write_bytes(JPEG)
        (folder / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.3 0.3\n")
    (folder / "data.yaml").write_text(GOOD)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            path.unlink()
        if isinstance(content, Path):
            path.symlink_to(content)
        elif content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return folder


def random_text(seed, count=200):
    """Join random words of any syntax."""
    rng = np.random.default_rng(seed)
    return "".join(WORDS[int(rng.integers(len(WORDS)))] + " \n"[int(rng.integers(2))] for _ in range(count))


def mutated(content, seed, changes=8):
    """Change, cut or repeat some bytes."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for at in rng.integers(0, len(data), changes):
        data[at] = int(rng.integers(256))
    if seed % 3 == 0:
        del data[int(rng.integers(1, len(data))) :]
    return bytes(data)


# ----------------------------------------------------------------------------------------------------------------------
# Contents by kind: {name: content}


def yamls():
    """Texts of data YAMLs."""
    found = {
        "empty": "",
        "spaces": " \n \n",
        "number": "7",
        "text": "hello",
        "list": "- a\n- b\n",
        "null": "null",
        "tab": "\tnames: [a]\n",
        "open bracket": "names: [a, b",
        "open quote": "names: 'a\ntrain: x\n",
        "deep list": "names: " + "[" * 20_000,
        "deep map": "a: " + "{a: " * 20_000,
        "alias bomb": "a: &a [x]\nb: [*a,*a]\n",
        "merge": "a: &a {b: 1}\nc: {<<: *a}\n",
        "tag": GOOD + "x: !!python/name:os.system\n",
        "binary": bytes(range(256)),
        "utf-16": GOOD.encode("utf-16"),
        "bom": "\ufeff" + GOOD,
        "crlf": GOOD.replace("\n", "\r\n"),
        "zero": b"\0" * 5000,
        "names null": GOOD.replace("[a, b]", "null"),
        "names nested": GOOD.replace("[a, b]", "[[a], {b: 1}]"),
        "names long": GOOD.replace("[a, b]", f"[{'n' * 100_000}, b]"),
        "names equal": GOOD.replace("[a, b]", "[a, a]"),
        "names many": GOOD.replace("[a, b]", "[" + ", ".join(f"n{i}" for i in range(20_000)) + "]"),
        "names lines": GOOD.replace("[a, b]", '["a\\nb", "\\0"]'),
        "nc float": GOOD + "nc: 2.5\n",
        "nc big": GOOD + "nc: 1e99\n",
        "nc list": GOOD + "nc: [2]\n",
        "train map": GOOD.replace("train: images", "train: {a: b}"),
        "train root": GOOD.replace("images", "/proc/self"),
        "train device": GOOD.replace("images", "/dev/zero"),
        "train full": GOOD.replace("images", "/dev/full"),
        "train random": GOOD.replace("images", "/dev/urandom"),
        "train url": GOOD.replace("images", "http://host.invalid/x"),
        "train long": GOOD.replace("images", "i" * 5000),
        "train many": GOOD.replace("images", "[" + ", ".join(["images"] * 500) + "]"),
        "train self": GOOD.replace("images", "data.yaml"),
        "path map": GOOD + "path: {a: 1}\n",
        "path long": GOOD + f"path: {'p/' * 3000}\n",
        "format map": GOOD + "format: {}\n",
        "semantic list": GOOD + "semantic: [1]\n",
        "semantic names device": "semantic: {train: images, val: images, names: /dev/zero}\n",
        "generate": GOOD + "generate: {kind: shapes, train: 1e99}\n",
        "generate words": GOOD + "generate: {kind: [a]}\n",
        "annotations": GOOD + "annotations: {train: /dev/zero}\nformat: coco\n",
        "label names": GOOD + "label_names: [a]\n",
        "twice": GOOD + GOOD,
        "surrogate": GOOD + 'x: "\\ud800"\n',
        "timestamp": GOOD + "x: 2020-99-99\n",
    }
    return (
        found
        | {f"random {i}": random_text(i) for i in range(12)}
        | {f"mutated {i}": mutated(GOOD.encode(), i) for i in range(8)}
    )


def labels():
    """Contents of a YOLO label file."""
    line = "0 0.5 0.5 0.3 0.3\n"
    polygon = "0 " + "0.1 0.2 " * 500_000
    return {
        "words": "a b c d e\n",
        "binary": bytes(range(256)),
        "utf-16": line.encode("utf-16"),
        "million": line * 1_000_000,
        "huge": b"0" * (40 * 2**20),
        "one line": "0 " * 2_000_000,
        "polygon": polygon,
        "nan": "nan nan nan nan nan\n",
        "inf": "0 inf 0 0 0\n",
        "negative": "-1 0.5 0.5 0.1 0.1\n",
        "class": "1e300 0.5 0.5 0.1 0.1\n",
        "digits": "0 0." + "5" * 300_000 + " 0.5 0.1 0.1\n",
        "exponent": "0 1e-400 0.5 0.1 0.1\n",
        "commas": "0,0.5,0.5,0.1,0.1\n",
        "pipe": None,
        "device": Path("/dev/zero"),
        "dangling": Path("/nowhere/x.txt"),
        "itself": Path("1.txt"),
        "spaces": " " * 100_000,
        "returns": "0 0.5 0.5 0.1 0.1\r" * 3,
        "mixed": line + "0 0.1 0.1 0.2 0.2 0.3 0.3\n",
        "faults": "x\n" * 90_000,
        "unknown class": "77 0.5 0.5 0.1 0.1\n",
    } | {f"random {i}": random_text(100 + i) for i in range(8)}


def images():
    """Contents of an image file."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    found = {
        "empty": b"",
        "text": "not an image",
        "zero": bytes(10_000),
        "jpeg start": JPEG[:4],
        "jpeg half": JPEG[: len(JPEG) // 2],
        "png half": PNG[: len(PNG) // 2],
        "png huge": header + b"\x7f\xff\xff\xff" * 2 + PNG[24:],
        "png zero": header + bytes(8) + PNG[24:],
        "pipe": None,
        "device": Path("/dev/zero"),
        "random device": Path("/dev/urandom"),
        "dangling": Path("/nowhere/x.jpg"),
        "itself": Path("1.jpg"),
        "folder": Path("../labels"),
        "gif": b"GIF89a\xff\xff\xff\xff\0\0\0",
        "bmp": b"BM" + b"\xff" * 60,
        "tiff": b"II*\0\xff\xff\xff\xff",
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "avif": b"\0\0\0\x20ftypavif" + bytes(20),
        "heic": b"\0\0\0\x18ftypheic" + bytes(20),
        "svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    found |= {f"jpeg {i}": mutated(JPEG, i, 30) for i in range(8)}
    return found | {f"png {i}": mutated(PNG, i, 30) for i in range(8)}


def lists():
    """Contents of a list file of images."""
    return {
        "empty": "",
        "lines": "\n" * 10_000,
        "words": "hello\n",
        "zero byte": "a\0.jpg\n",
        "binary": bytes(range(256)),
        "utf-16": "images/0.jpg".encode("utf-16"),
        "latin": b"images/caf\xe9.jpg\n",
        "missing": "none.jpg\n" * 1000,
        "itself": "list.txt\n",
        "long": "a" * 300_000 + ".jpg\n",
        "repeated": "images/0.jpg\n" * 10_000,
        "device": Path("/dev/zero"),
        "pipe": None,
        "url": "http://host.invalid/a.jpg\n",
        "up": "../" * 3000 + "a.jpg\n",
        "huge": b"images/0.jpg\n" * 3_000_000,
        "separators": "images/0.jpg\u2028images/1.jpg\x0cimages/2.jpg\n",
    }


def cocos():
    """Contents of a COCO JSON."""
    content = {
        "images": [{"id": 1, "file_name": "0.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }

    def changed(part, **values):
        return json.dumps(content | {part: [content[part][0] | values, *content[part][1:]]})

    one = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    text = json.dumps(content)
    return {
        "empty": "",
        "list": "[]",
        "null": "null",
        "open": text[:-5],
        "deep": "[" * 100_000,
        "deep value": '{"images": ' + "[" * 100_000,
        "binary": bytes(range(256)),
        "device": Path("/dev/zero"),
        "pipe": None,
        "no images": "{}",
        "words": '{"images": ["a"]}',
        "nan": changed("annotations", bbox=[float("nan")] * 4),
        "digits": '{"images": ' + "1" * 100_000 + "}",
        "box words": changed("annotations", bbox="abcd"),
        "box short": changed("annotations", bbox=[1]),
        "box huge": changed("annotations", bbox=[1e308] * 4),
        "no bbox": changed("annotations", bbox=None),
        "category": changed("annotations", category_id=99),
        "category word": changed("annotations", category_id="x"),
        "image": changed("annotations", image_id=[1]),
        "duplicate category": changed("categories", id=2),
        "category null": changed("categories", id=None),
        "image twice": json.dumps(content | {"images": content["images"] * 2}),
        "size": changed("images", width=-1, height=1e99),
        "size word": changed("images", width="x"),
        "name": changed("images", file_name=7),
        "name long": changed("images", file_name="x" * 100_000),
        "rle": changed("annotations", segmentation={"size": [10**9, 10**9], "counts": "x"}),
        "rle negative": changed("annotations", segmentation={"size": [-4, -4], "counts": [16]}),
        "rle counts": changed("annotations", segmentation={"size": [48, 64], "counts": [10**12]}),
        "polygon odd": changed("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "polygon words": changed("annotations", segmentation=[["a"] * 6]),
        "polygon nested": changed("annotations", segmentation=[[[1] * 6] * 6]),
        "many": json.dumps(content | {"annotations": [one] * 150_000}),
        "separate pieces": changed("annotations", segmentation=[[float(i % 64) for i in range(20_000)]] * 2),
    } | {f"mutated {i}": mutated(text.encode(), i, 5) for i in range(8)}


def labelmes():
    """Contents of a LabelMe JSON."""
    return {
        "empty": "",
        "list": "[]",
        "no shapes": "{}",
        "shapes word": '{"shapes": "x"}',
        "shape word": '{"shapes": ["x"]}',
        "deep": "[" * 100_000,
        "points": '{"shapes": [{"label": "a", "points": [[1]]}]}',
        "points nan": '{"shapes": [{"label": "a", "points": [[NaN, 1], [2, 3], [4, 5]]}]}',
        "kind": '{"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "blob"}]}',
        "pipe": None,
        "device": Path("/dev/zero"),
        "mask": '{"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "!!!"}]}',
        "label": '{"shapes": [{"label": {}}]}',
        "circle": '{"shapes": [{"label": "a", "points": [[1, 2], [1e308, 4]], "shape_type": "circle"}]}',
        "size": '{"shapes": [], "imageHeight": 1e99, "imageWidth": -1}',
    }


def xmls():
    """Contents of a VOC XML."""
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>64</width><height>48</height></size>"
    whole = f"<annotation>{size}<object><name>a</name>{box}</object></annotation>"
    lol = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    return {
        "empty": "",
        "text": "hello",
        "open": whole[:-5],
        "entities": lol,
        "external": '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>',
        "deep": "<a>" * 50_000,
        "other": "<html/>",
        "no name": whole.replace("<name>a</name>", ""),
        "no box": whole.replace(box, ""),
        "pipe": None,
        "words": whole.replace("<xmin>1", "<xmin>x"),
        "inf": whole.replace("<xmin>1", "<xmin>-inf"),
        "size": whole.replace("64", "1e999"),
        "device": Path("/dev/zero"),
        "binary": bytes(range(256)),
        "encoding": f'<?xml version="1.0" encoding="klingon"?>{whole}',
        "utf-16": whole.encode("utf-16"),
        "many": whole.replace("</annotation>", f"<object><name>a</name>{box}</object>" * 120_000 + "</annotation>"),
        "swapped": whole.replace("<xmax>9", "<xmax>-9"),
    } | {f"mutated {i}": mutated(whole.encode(), i, 5) for i in range(6)}


def masks():
    """Contents of a semantic mask."""
    colour = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    deep = cv2.imencode(".png", np.zeros((48, 64), np.uint16))[1].tobytes()
    return {
        "empty": b"",
        "colour": colour,
        "16 bit": deep,
        "jpeg": JPEG,
        "half": MASK[: len(MASK) // 2],
        "pipe": None,
        "device": Path("/dev/zero"),
        "value": cv2.imencode(".png", np.full((48, 64), 7, np.uint8))[1].tobytes(),
        "size": cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes(),
    } | {f"mutated {i}": mutated(MASK, i, 10) for i in range(5)}


def archives():
    """Contents of archives, with the suffix in the name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros.bin", bytes(300 * 2**20))
    bomb, escaping, tarred = packed.getvalue(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(escaping, "w") as opened:
        opened.writestr("../../evil.txt", "x")
    with tarfile.open(fileobj=tarred, mode="w") as opened:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    found = {
        "empty.zip": b"",
        "text.zip": "hello",
        "bomb.zip": bomb,
        "escape.zip": escaping.getvalue(),
        "half.zip": bomb[: len(bomb) // 2],
        "pipe.zip": None,
        "device.tar": Path("/dev/zero"),
        "link.tar": tarred.getvalue(),
        "empty.tar.gz": b"",
        "text.tgz": "hello",
        "zero.tar": bytes(10_240),
        "text.tar.xz": "x" * 999,
    }
    return found | {
        f"mutated {i}.zip": mutated(escaping.getvalue().replace(b"../../", b"aaaaaa"), i, 6) for i in range(6)
    }


def sources():
    """Contents of `--source` files."""
    return {
        "a.mp4": b"\0\0\0\x18ftypmp42" + bytes(500),
        "b.mp4": "hello",
        "c.avi": b"RIFF\xff\xff\xff\xffAVI " + bytes(99),
        "d.gif": b"GIF89a" + bytes(9),
        "e.mkv": b"\x1aE\xdf\xa3" + bytes(999),
        "f.txt": "nothing.jpg\n",
        "g.txt": b"\xff\xfe\0\0",
        "h.jpg": b"",
        "i.mp4": None,
        "j.mp4": Path("/dev/zero"),
        "k.jpg": Path("/dev/zero"),
        "l.jpg": None,
        "m.txt": Path("/dev/zero"),
        "n.streams": "",
        "o.txt": "a\0b.jpg\n",
    }


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def _counted(index):
    """Describe what a scan dropped."""
    count = index.count
    dropped = f"{count['corrupt']} dropped, {count['lost']} objects dropped, {count['duplicates']} duplicates"
    return f"{len(index)} images, {dropped}"


def _read_set(folder):
    """Read a detection data set, first strictly and then with faults allowed; return what was found."""
    data = load_data(str(folder / "data.yaml"))
    try:
        strict = _counted(build_index(data, "train"))
    except UserError as error:
        strict = _one_line(error, folder)
    try:
        index = build_index(data, "train", allow_faults=True)
    except UserError as error:
        return f"{strict}; {_one_line(error, folder)}"
    for image in range(len(index)):
        try:
            read_image(Path(index.path(image)))
        except ImageFault as fault:
            _one_line(fault, folder)
    return f"{strict}; {_counted(index)}"


def _one_line(error, folder):
    """Check and return the message of an error."""
    text = one_line(str(error))
    assert text and "\n" not in text and len(text) < 6000, text[:500]
    named = str(folder) in text or "/dev/" in text or "--" in text or "no such file" in text
    assert named, f"{text[:300]} names no file of {folder}"
    return text


def _read_semantic(folder):
    return f"{len(build_semantic_index(load_data(str(folder / 'data.yaml')), 'train', allow_faults=True))} images"


def _read_source(folder):
    path = next(path for path in folder.iterdir() if path.name not in ("images", "labels", "data.yaml"))
    return f"{len(list(open_source(str(path))))} frames"


def _read_archive(folder):
    path = next(path for path in folder.iterdir() if path.name not in ("images", "labels", "data.yaml"))
    return f"{extract(path, folder / 'out')} files"


COCO = GOOD + "format: coco\nannotations: {train: instances.json}\n"
SEMANTIC = "semantic: {train: images, val: images, names: [a, b], masks: {train: masks, val: masks}}\n"
KINDS = {  # kind: (contents, name of the file, other files, reader)
    "yaml": (yamls, "data.yaml", {}, _read_set),
    "hyp": (yamls, "hyp.yaml", {}, lambda folder: f"{Hyp.from_file(folder / 'hyp.yaml')}"[:40]),
    "labels": (labels, "labels/1.txt", {}, _read_set),
    "images": (images, "images/1.jpg", {}, _read_set),
    "lists": (lists, "list.txt", {"data.yaml": GOOD.replace("train: images", "train: list.txt")}, _read_set),
    "coco": (cocos, "instances.json", {"data.yaml": COCO}, _read_set),
    "labelme": (labelmes, "images/1.json", {"data.yaml": GOOD + "format: labelme\n"}, _read_set),
    "voc": (xmls, "images/1.xml", {"data.yaml": GOOD + "format: voc\n"}, _read_set),
    "masks": (masks, "masks/1.png", {"data.yaml": SEMANTIC, "masks/0.png": MASK, "masks/2.png": MASK}, _read_semantic),
    "archives": (archives, "", {}, _read_archive),
    "sources": (sources, "", {}, _read_source),
}


def entries(folder):
    """Write the corpus; yield kind, name, folder and reader of each entry."""
    for kind, (contents, place, others, read) in KINDS.items():
        for number, (name, content) in enumerate(contents().items()):
            path = folder / kind / str(number)
            yield kind, name, write_set(path, **{**others, place or name: content}), read


class TooSlowError(Exception):
    """An entry took longer than `LIMIT_S`; not an OSError, which readers would report and skip."""


def _too_slow(*_):
    raise TooSlowError(f"more than {LIMIT_S} s")


def peak_mb() -> int:
    """Get the peak resident memory of this process in MB; its rusage would include the memory of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main(folder):
    """Read the whole corpus; print a JSON line for each entry and the peak memory at the end."""
    signal.signal(signal.SIGALRM, _too_slow)
    for kind, name, path, read in entries(folder):
        start = time.monotonic()
        signal.alarm(LIMIT_S)
        outcome = {"kind": kind, "name": name, "fault": ""}
        try:
            outcome["text"] = read(path)
        except (UserError, ImageFault) as error:
            try:
                outcome["text"] = _one_line(error, path)
            except AssertionError as wrong:
                outcome["fault"] = f"message: {wrong}"
        except OSError as error:
            correctable = error.errno in _USER_ERRORS and error.filename  # `run_script` makes one line of it
            outcome["text" if correctable else "fault"] = f"{error.strerror}: {str(error)[:300]}"
        except Exception as error:  # noqa: BLE001 - what must not happen
            outcome["fault"] = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            signal.alarm(0)
        outcome["seconds"] = round(time.monotonic() - start, 2)
        outcome["peak_mb"] = peak_mb()
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
