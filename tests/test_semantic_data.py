"""Data with semantic maps: the YAML, the layouts of masks, and faults."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_semantic import pixel_set, request, scene, write_pair
from PIL import Image

from utils.core.cityscapes import NAMES
from utils.core.data_config import DataConfig, SemanticConfig, load_cityscapes_folder, load_data
from utils.core.errors import UserError
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.scan import SplitScan
from utils.datasets.labels.semantic_layouts.cityscapes import LABEL_IDS
from utils.datasets.labels.semantic_scan import build_semantic_index
from utils.datasets.pipeline.semantic_samples import open_semantic_loader


def yaml_of(folder: Path, **values) -> str:
    write_yaml(folder / "d.yaml", values)
    return str(folder / "d.yaml")


PIXELS = {"train": "images", "val": "images", "names": ["road", "sky"]}

# ----------------------------------------------------------------------------------------------------------------------
# The YAML


def test_semantic_only_data(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    data = load_data(yaml_of(tmp_path, path="set", semantic=PIXELS))
    assert (data.names, data.splits, data.num_classes) == ((), {}, 0)
    assert data.root == tmp_path / "set"
    assert data.semantic == SemanticConfig(
        ("road", "sky"), dict.fromkeys(("train", "val"), (tmp_path / "set" / "images",)), root=tmp_path / "set"
    )
    with pytest.raises(UserError, match="no `train:` key"):
        data.split("train")


def test_boxes_only_or_both(tmp_path):
    boxes = {"train": "images", "val": "images", "names": ["a"]}
    assert load_data(yaml_of(tmp_path, **boxes)).semantic is None
    with pytest.raises(UserError, match="no `semantic:` block"):
        load_data(yaml_of(tmp_path, **boxes)).semantic_split("train")
    both = load_data(yaml_of(tmp_path, **boxes, semantic=PIXELS))
    assert both.names == ("a",) and both.semantic.names == ("road", "sky")


def test_multiyolov5_keys(tmp_path):
    data = load_data(
        yaml_of(tmp_path, train="det", val="det", nc=1, names=["a"], segtrain="seg/train", segval="seg/val",
                segnames=["_background_", "crack"])
    )  # fmt: skip
    assert data.semantic.names == ("_background_", "crack") and data.semantic.format == "folders"
    assert data.semantic.splits == {"train": (tmp_path / "seg/train",), "val": (tmp_path / "seg/val",)}
    (tmp_path / "citys" / "leftImg8bit" / "train").mkdir(parents=True)
    streets = load_data(yaml_of(tmp_path, segtrain="citys", segval="citys"))
    assert streets.semantic.names == NAMES and streets.semantic.format == "cityscapes"
    with pytest.raises(UserError, match=r"names of the semantic classes are missing.*segnames"):
        load_data(yaml_of(tmp_path, train="det", val="det", names=["a"], segtrain="seg/train"))
    with pytest.raises(UserError, match=r"`segtrain:` and `semantic.train:` are the same setting"):
        load_data(yaml_of(tmp_path, segtrain="x", semantic=PIXELS))


def test_all_faults_are_reported_together(tmp_path):
    semantic = {"train": 7, "val": "x", "names": ["a"], "low": -1, "jitter": [1, 2], "trian": "x", "crop": [1, 0]}
    with pytest.raises(UserError) as caught:
        load_data(yaml_of(tmp_path, nc="x", semantic=semantic))
    text = str(caught.value)
    for says in ("`nc:` must be", "`semantic.train:` must be a folder", "`semantic.low:` must be a number above 0",
                 "`semantic.jitter:` must be four", "unknown key `semantic.trian:`", "`semantic.crop:`"):  # fmt: skip
        assert says in text
    assert "d.yaml" in text and "\n" not in text


@pytest.mark.parametrize(
    ("semantic", "says"),
    [
        ({"names": ["a"]}, "needs `train:`"),
        ({**PIXELS, "names": []}, "`semantic.names` is empty"),
        ({**PIXELS, "names": {0: "a", 2: "b"}}, "`semantic.names` must number"),
        ({**PIXELS, "nc": 3}, "`semantic.nc: 3`"),
        ({**PIXELS, "palette": [[0, 0, 0]]}, "1 colours for 2 classes"),
        ({**PIXELS, "palette": [[0, 0, 256], [0, 0, 0]]}, "`semantic.palette:` must be"),
        ({**PIXELS, "ids": {7: 2}}, "has class 2"),
        ({**PIXELS, "names": [str(i) for i in range(256)]}, "255 at most"),
        ({**PIXELS, "masks": {"trian": "x"}}, "`semantic.masks:` must be"),
        ("images", "`semantic:` must be a mapping"),
    ],
)
def test_malformed_semantic_block(tmp_path, semantic, says):
    with pytest.raises(UserError) as caught:
        load_data(yaml_of(tmp_path, semantic=semantic))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_missing_path_lists_candidates(tmp_path):
    data = load_data(yaml_of(tmp_path, path="set", semantic={**PIXELS, "masks": {"train": "maps"}}))
    with pytest.raises(UserError, match=r"`semantic.train:` does not exist; looked for") as caught:
        data.semantic_split("train")
    assert str(tmp_path / "set" / "images") in str(caught.value) and str(caught.value).count("images") > 1
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"`semantic.masks.train:` does not exist"):
        data.semantic_split("train")
    with pytest.raises(UserError, match="no `test:` key in `semantic:`"):
        data.semantic_split("test")


def test_names_from_file(tmp_path):
    (tmp_path / "names.txt").write_text("road\nsky\n\n")
    assert load_data(yaml_of(tmp_path, semantic={**PIXELS, "names": "names.txt"})).semantic.names == ("road", "sky")


# ----------------------------------------------------------------------------------------------------------------------
# Layouts


def index_of(root, layout, places, names=("a", "b", "c"), split="train", **options):
    places = places if isinstance(places, tuple) else (places,)
    semantic = SemanticConfig(tuple(names), {split: places}, format=layout, options=options, root=root)
    return build_semantic_index(DataConfig(root / "d.yaml", root, (), {}, semantic=semantic), split)


def first_map(index):
    return index.read_map(0)


@pytest.mark.parametrize(
    ("layout", "image_folder", "mask_folder", "stems"),
    [
        ("folders", "segimages/train", "seglabels/train", ("1", "1")),
        ("folders", "images/train", "masks/train", ("1", "1")),
        ("folders", "images/train", "labels/train", ("1", "1")),
        ("folders", "imgs", "imgs_masks", ("1", "1")),
        ("folders", "images", "masks", ("1_img", "1_gt")),
        ("camvid", "train", "trainannot", ("1", "1")),
        ("coco", "images/train2017", "stuffthingmaps/train2017", ("1", "1")),
        ("coco", "images/train2017", "masks_semantic/train2017", ("1", "1")),
        ("shapes", "images/train", "masks/train", ("1", "1")),
    ],
)
def test_mask_paths_per_layout(tmp_path, layout, image_folder, mask_folder, stems):
    image, classes = scene(0, 32, 48)
    for folder, stem, pixels in ((image_folder, stems[0], image), (mask_folder, stems[1], classes)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / folder / f"{stem}.png"), pixels)
    index = index_of(tmp_path, layout, tmp_path / image_folder)
    assert index.masks.path(0) == str(tmp_path / mask_folder / f"{stems[1]}.png")
    np.testing.assert_array_equal(first_map(index)[0], classes)
    assert index.pixel_counts.tolist() == [int((classes == c).sum()) for c in range(3)]
    assert index.image_counts.tolist() == [int((classes == c).any()) for c in range(3)]


def test_mask_folder_options(tmp_path):
    write_pair(tmp_path, "sub/1", *scene(0, 32, 48), ("segimages/train", "seglabels/train"))
    assert len(index_of(tmp_path, "folders", tmp_path)) == 1
    write_pair(tmp_path, "sub/1", *scene(1, 32, 48), ("pictures", "elsewhere"))
    semantic = SemanticConfig(
        ("a", "b", "c"), {"val": (tmp_path / "pictures",)}, {"val": (tmp_path / "elsewhere",)}, root=tmp_path
    )
    index = build_semantic_index(DataConfig(tmp_path / "d.yaml", tmp_path, (), {}, semantic=semantic), "val")
    assert index.masks.path(0) == str(tmp_path / "elsewhere" / "sub" / "1.png")


def test_cityscapes_label_ids(tmp_path):
    ids = np.array([*range(34), 255, 0], np.uint8).reshape(6, 6).repeat(4, 0).repeat(4, 1)
    for truth, values in (("labelIds", ids), ("instanceIds", ids.astype(np.uint16) * 1000)):
        city = tmp_path / "gtFine" / "train" / "ulm"
        city.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(city / f"ulm_000001_gtFine_{truth}.png"), values)
    image = tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_000001_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    cv2.imwrite(str(image), np.zeros((24, 24, 3), np.uint8))
    wanted = np.full(256, 255, np.uint8)
    for number, label_id in enumerate([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]):
        wanted[label_id] = number
    for place in (tmp_path, tmp_path / "leftImg8bit" / "train"):
        index = index_of(tmp_path, "cityscapes", place, NAMES)
        np.testing.assert_array_equal(first_map(index)[0], wanted[ids])
        assert index.pixel_counts.tolist() == [16] * 19
    data = load_cityscapes_folder(tmp_path)
    assert data.semantic.format == "cityscapes" and len(build_semantic_index(data, "train")) == 1
    with pytest.raises(UserError, match="has 19"):
        index_of(tmp_path, "cityscapes", tmp_path, ("a", "b"))


def test_citybdd(tmp_path):
    for city, stem, suffix, mask, value in (
        ("ulm", "ulm_1_leftImg8bit", ".png", "ulm_1_gtFine_labelIds", LABEL_IDS[13]),
        ("bdd", "0a", ".jpg", "0a", 13),
    ):
        for tree, name, pixels in (
            ("leftImg8bit", stem + suffix, np.zeros((32, 32, 3), np.uint8)),
            ("gtFine", f"{mask}.png", np.full((32, 32), value, np.uint8)),
        ):
            (tmp_path / tree / "train" / city).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / tree / "train" / city / name), pixels)
    assert load_cityscapes_folder(tmp_path).semantic.format == "citybdd"
    index = index_of(tmp_path, "citybdd", tmp_path, NAMES)
    assert index.pixel_counts[13] == 2 * 32 * 32 and len(index) == 2


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("images/10k/train", "labels/sem_seg/masks/train", ""),
        ("seg/images/train", "seg/labels/train", "_train_id"),
    ],
)
def test_bdd100k_layouts(tmp_path, images, masks, ending):
    for folder, name, pixels in (
        (images, "0a.jpg", np.zeros((32, 32, 3), np.uint8)),
        (masks, f"0a{ending}.png", np.full((32, 32), 18, np.uint8)),
    ):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / name), pixels)
    assert index_of(tmp_path, "bdd100k", tmp_path / images, NAMES).pixel_counts[18] == 32 * 32


def test_coco_stuff(tmp_path, caplog):
    values = np.zeros((32, 32), np.uint8)
    values[:8], values[8:16], values[16:24] = 181, 12, 255  # the last category, the one after the first gap (id 12)
    write_pair(tmp_path, "1", np.zeros((32, 32, 3), np.uint8), values, ("images/val", "stuffthingmaps/val"))
    cv2.imwrite(str(tmp_path / "images/val/2.png"), np.zeros((32, 32, 3), np.uint8))
    index = index_of(tmp_path, "coco", tmp_path / "images/val", [str(i) for i in range(171)])
    assert len(index) == 1 and "1 of 2 images without a mask dropped" in caplog.text
    classes = first_map(index)[0]
    assert [int(classes[row, 0]) for row in (0, 8, 16, 24)] == [170, 11, 255, 0]


def test_shapes_background_class(tmp_path):
    data = load_data("shapes")
    assert data.semantic.names == (*data.names, "background") and data.semantic.format == "shapes"
    wrong = replace(data, semantic=replace(data.semantic, names=("a", "b")), root=tmp_path)
    with pytest.raises(UserError, match="must be those of `names` and one for the background"):
        build_semantic_index(wrong, "train")


def test_real_camvid_and_cityscapes(shared):
    sets = shared / "datasets"
    camvid = index_of(sets, "camvid", sets / "camvid/val", [str(i) for i in range(11)])
    assert len(camvid) == 50 and (camvid.image_counts > 0).all()
    street = index_of(sets, "cityscapes", sets / "cityscapes_sample", NAMES, "val")
    folder = sets / "cityscapes_sample/gtFine/val/frankfurt"
    wanted = cv2.imread(str(folder / "frankfurt_000000_000294_gtFine_labelTrainIds.png"), cv2.IMREAD_UNCHANGED)
    assert (first_map(street)[0] == wanted).mean() > 0.997  # the sample's two maps were made smaller each by itself


def test_unsupported_layout_settings(tmp_path):
    data = pixel_set(tmp_path, 2, ids={0: 0})
    shapes = replace(data, semantic=replace(data.semantic, format="shapes"))
    with pytest.raises(UserError, match=r"`semantic.ids:` is not supported by the format shapes"):
        open_semantic_loader(request(shapes))
    with pytest.raises(UserError, match=r"low: 2.0` exceeds"):
        open_semantic_loader(request(pixel_set(tmp_path / "b", 2, low=2.0)))
    with pytest.raises(UserError, match=r"unknown layout of semantic maps 'folder'.*did you mean 'folders'"):
        open_semantic_loader(request(replace(data, semantic=replace(data.semantic, format="folder"))))


# ----------------------------------------------------------------------------------------------------------------------
# Values and faults


def test_palette_and_low_bit_pngs(tmp_path):
    _, classes = scene(0, 32, 48)
    palette = Image.fromarray(classes, "P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    kinds = {"palette": palette, "plain": Image.fromarray(classes)}
    for name, mask in kinds.items():
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "masks").mkdir()
        cv2.imwrite(str(tmp_path / name / "images" / "1.png"), np.zeros((32, 48, 3), np.uint8))
        mask.save(tmp_path / name / "masks" / "1.png")
        np.testing.assert_array_equal(first_map(index_of(tmp_path, "folders", tmp_path / name / "images"))[0], classes)
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes([0b00011011] * 3) for _ in range(12))  # 2 bits per pixel: 0 1 2 3 0 1 2 3 ...
    head = struct.pack(">IIBBBBB", 12, 12, 2, 0, 0, 0, 0)
    narrow = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    cv2.imwrite(str(tmp_path / "palette" / "images" / "1.png"), np.zeros((12, 12, 3), np.uint8))
    (tmp_path / "palette" / "masks" / "1.png").write_bytes(narrow)
    index = index_of(tmp_path, "folders", tmp_path / "palette" / "images", "abcd")
    assert first_map(index)[0][0].tolist() == [0, 1, 2, 3] * 3


def test_ids_and_ignore(tmp_path):
    values = np.repeat(np.array([0, 5, 7, 255], np.uint8), 64).reshape(16, 16)
    write_pair(tmp_path, "1", np.zeros((16, 16, 3), np.uint8), values, ("images", "masks"))
    index = index_of(tmp_path, "folders", tmp_path / "images", "ab", ids={5: 1, 7: 0}, ignore=[0])
    assert first_map(index)[0][::4, 0].tolist() == [255, 1, 0, 255]
    assert index.pixel_counts.tolist() == [64, 64]


def broken(root: Path, kind: str) -> str:
    """Damage one of many images; return the file that the message must name."""
    mask, image = root / "masks" / "03.png", root / "images" / "03.png"
    classes = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    if kind == "size":
        cv2.imwrite(str(mask), classes[:-1])
    elif kind == "colour":
        cv2.imwrite(str(mask), np.dstack([classes] * 3))
    elif kind == "deep":
        cv2.imwrite(str(mask), classes.astype(np.uint16))
    elif kind == "value":
        classes[5, 7] = 3
        cv2.imwrite(str(mask), classes)
    elif kind == "missing":
        mask.unlink()
    elif kind == "cut":
        mask.write_bytes(mask.read_bytes()[:-20])
    elif kind == "jpeg":
        mask.write_bytes(cv2.imencode(".jpg", classes)[1].tobytes())
    elif kind == "image":
        image.write_bytes(b"nothing")
        return str(image)
    return str(mask)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("size", "pixels, its image"), ("colour", "a colour image"), ("deep", "16 bits"),
        ("value", "value 3 at x 7, y 5 is not a class; expected 0 to 2"), ("missing", "no such mask"),
        ("cut", "truncated PNG"),
        ("jpeg", "JPEG compression changes"), ("image", "not an image"),
    ],
)  # fmt: skip
def test_fault_limit(tmp_path, kind, says, caplog):
    data = pixel_set(tmp_path, 9)
    file = broken(tmp_path, kind)
    if kind == "image":  # a broken image is dropped, as with boxes
        assert len(build_semantic_index(data, "train")) == 8
    else:
        with pytest.raises(UserError, match="1 faulty masks among 9") as caught:
            build_semantic_index(data, "train")
        assert file in str(caught.value) and says in str(caught.value) and "--allow-label-faults" in str(caught.value)
        assert len(build_semantic_index(data, "train", allow_faults=True)) == 8
    assert file in caplog.text and says in caplog.text
    with pytest.raises(UserError, match="none of 9 images can be used"):
        for path in tmp_path.glob("images/*.png"):
            path.write_bytes(b"nothing")
        build_semantic_index(data, "train", allow_faults=True)


def test_duplicate_images_are_used_once(tmp_path, caplog):
    data = pixel_set(tmp_path, 3)
    (tmp_path / "list.txt").write_text("images/00.png\nimages/01.png\nimages/00.png\n")
    listed = replace(data, semantic=replace(data.semantic, splits={"train": (tmp_path / "list.txt",)}))
    assert len(build_semantic_index(listed, "train")) == 2
    assert f"{tmp_path / 'images/00.png'}: listed 2 times, used once" in caplog.text


def test_cache_invalidation(tmp_path, monkeypatch):
    data = pixel_set(tmp_path, 4)
    scans = []
    original = SplitScan._check_all
    monkeypatch.setattr(SplitScan, "_check_all", lambda self: scans.append(1) or original(self))
    first = build_semantic_index(data, "train")
    again = build_semantic_index(data, "train")
    assert len(scans) == 1 and again.pixel_counts.tolist() == first.pixel_counts.tolist()
    assert [again.masks.path(i) for i in range(4)] == [first.masks.path(i) for i in range(4)]
    kept = list(tmp_path.glob("*.semantic.polyolo-cache.npz"))
    assert len(kept) == 1
    kept[0].write_bytes(b"junk")
    build_semantic_index(data, "train")
    write_pair(tmp_path, "02", *scene(77, 48, 48), ("images", "masks"))
    assert build_semantic_index(data, "train").pixel_counts.tolist() != first.pixel_counts.tolist()
    assert len(scans) == 3
