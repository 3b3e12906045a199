"""Every hyperparameter file that ships, and every way one can be wrong."""

from dataclasses import replace

import pytest

from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.hyp import Hyp, find_hyp

NAMES = (
    "scratch-low", "scratch-med", "scratch-high", "no-augmentation", "VOC", "Objects365", "scratch", "finetune",
)  # fmt: skip
TABLE = {  # published values, columns in the order of NAMES
    "lr0": (0.01, 0.01, 0.01, 0.01, 0.00334, 0.00258, 0.01, 0.0032),
    "lrf": (0.01, 0.1, 0.1, 0.1, 0.15135, 0.17, 0.2, 0.12),
    "momentum": (0.937, 0.937, 0.937, 0.937, 0.74832, 0.779, 0.937, 0.843),
    "weight_decay": (5e-4, 5e-4, 5e-4, 5e-4, 2.5e-4, 5.8e-4, 5e-4, 3.6e-4),
    "warmup_epochs": (3, 3, 3, 3, 3.3835, 1.33, 3, 2),
    "warmup_momentum": (0.8, 0.8, 0.8, 0.8, 0.59462, 0.86, 0.8, 0.5),
    "warmup_bias_lr": (0.1, 0.1, 0.1, 0.1, 0.18657, 0.0711, 0.1, 0.05),
    "box": (0.05, 0.05, 0.05, 0.05, 0.02, 0.0539, 0.05, 0.0296),
    "cls": (0.5, 0.3, 0.3, 0.3, 0.21638, 0.299, 0.5, 0.243),
    "cls_pw": (1, 1, 1, 1, 0.5, 0.825, 1, 0.631),
    "obj": (1, 0.7, 0.7, 0.7, 0.51728, 0.632, 1, 0.301),
    "obj_pw": (1, 1, 1, 1, 0.67198, 1, 1, 0.911),
    "iou_t": (0.2,) * 8,
    "anchor_t": (4, 4, 4, 4, 3.3744, 3.44, 4, 2.91),
    "anchors": (None, None, None, None, 3.412, 3.2, None, None),
    "fl_gamma": (0,) * 8,
    "label_smoothing": (0,) * 8,
    "hsv_h": (0.015, 0.015, 0.015, 0, 0.01041, 0.0188, 0.015, 0.0138),
    "hsv_s": (0.7, 0.7, 0.7, 0, 0.54703, 0.704, 0.7, 0.664),
    "hsv_v": (0.4, 0.4, 0.4, 0, 0.27739, 0.36, 0.4, 0.464),
    "degrees": (0, 0, 0, 0, 0, 0, 0, 0.373),
    "translate": (0.1, 0.1, 0.1, 0, 0.04591, 0.0902, 0.1, 0.245),
    "scale": (0.5, 0.9, 0.9, 0, 0.75544, 0.491, 0.5, 0.898),
    "shear": (0, 0, 0, 0, 0, 0, 0, 0.602),
    "perspective": (0,) * 8,
    "flipud": (0, 0, 0, 0, 0, 0, 0, 0.00856),
    "fliplr": (0.5, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5),
    "mosaic": (1, 1, 1, 0, 0.85834, 1, 1, 1),
    "mosaic9": (0,) * 8,
    "mixup": (0, 0.1, 0.1, 0, 0.04266, 0, 0, 0.243),
    "copy_paste": (0, 0, 0.1, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("column", range(len(NAMES)), ids=NAMES)
def test_hyp_files_have_published_values(column):
    expected = Hyp(**{key: values[column] for key, values in TABLE.items()})
    assert Hyp.from_file(find_hyp(f"hyp.{NAMES[column]}.yaml")) == expected


def test_hyp_file_list_and_headers():
    files = sorted((ROOT / "data" / "hyps").iterdir())
    assert [path.name for path in files] == sorted(
        f"hyp.{name}.yaml"
        for name in (
            *NAMES,
            "semantic",
            "semantic-finetune",
            "joint-finetune",
            "panoptic-finetune",
            "shapes",
            "shapes-panoptic",
            "classify",
            "shapes-cls",
            "prune",
        )
    )
    for path in files:
        assert path.read_text(encoding="utf-8").startswith("# ")


def test_defaults_equal_scratch_low():
    assert Hyp.from_file(find_hyp("scratch-low")) == Hyp()


def test_panoptic_finetuning_spares_the_shared_layers():
    joint = Hyp.from_file(find_hyp("joint-finetune"))
    assert Hyp.from_file(find_hyp("panoptic-finetune")) == replace(joint, seg=0.01, seg_lr=10.0)


def test_semantic_hyp():
    scratch = Hyp.from_file(find_hyp("scratch"))
    assert Hyp.from_file(find_hyp("semantic")) == replace(scratch, lr0=0.0015, seg=0.35, det=0.6, seg_loss="ce")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("lr0: 0.01\nmosiac: 0.1\n", "", r"unknown key 'mosiac'; did you mean 'mosaic'"),
        ("lr0: 0.01\nlr0: 0.02\n", ":2", "duplicate key"),
        ("lr0: fast\n", "", "lr0 must be a number, got 'fast'"),
        ("mosaic: yes\n", "", "mosaic must be a number, got 'yes'"),
        ("mosaic: true\n", "", "mosaic must be a number, got True"),
        ("mosaic: 1.5\n", "", "mosaic is a probability"),
        ("lr0: -0.01\n", "", "must be above 0"),
        ("lr0: .nan\n", "", "must be a number"),
        ("lr0: 0\n", "", "lr0 must be above 0"),
        ("anchor_t: 0.5\n", "", "anchor_t must lie between 1"),
        ("lr0: [0.01, 0.1]\n", "", "lr0 must be a number"),
        ("lr0:\n", "", "lr0 must be a number, got None"),
        ("lr0: 0.01\n  lrf: 0.1\n", ":2", "invalid YAML"),
        ("lr0: 0.01\nlrf: [0.1\n", ":3", "invalid YAML"),
        ("lr0: 0.01\n\tlrf: 0.1\n", ":2", "invalid YAML"),
        ("lr0: &a 0.01\nlrf: *a\n", ":2", "aliases"),
        ("lr0: !!python/object/apply:os.getcwd []\n", ":1", "invalid YAML"),
        ("- lr0\n- lrf\n", "", "expected `key: value` lines"),
        ("0.01", "", "expected `key: value` lines"),
        ("# nothing\n", "", "is empty"),
        ("? [a, b]\n: 1\n", ":1", "a key must be a string or a number"),
        ("\0\n", "", "invalid YAML"),
    ],
)
def test_malformed_hyp(tmp_path, text, place, message):
    path = tmp_path / "hyp.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        Hyp.from_file(path)
    assert str(caught.value).startswith(f"{path}{place}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_hyp(tmp_path):
    path = tmp_path / "hyp.yaml"
    path.write_bytes(b"lr0: \xff\xfe\n")
    with pytest.raises(UserError, match=r"hyp\.yaml: not a text file \(byte 5"):
        Hyp.from_file(path)
    with pytest.raises(UserError, match="no such hyperparameter file"):
        Hyp.from_file(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="got a folder"):
        Hyp.from_file(tmp_path)
    with pytest.raises(UserError, match=r"scratch-lo: no such hyperparameter file.*hyp\.scratch-low\.yaml"):
        find_hyp("scratch-lo")


def test_yaml_number_forms(tmp_path):
    path = tmp_path / "hyp.yaml"
    path.write_text("lr0: 1e-3\nlrf: .5\nmosaic: 1\n", encoding="utf-8")
    hyp = Hyp.from_file(path)
    assert (hyp.lr0, hyp.lrf, hyp.mosaic) == (0.001, 0.5, 1)
