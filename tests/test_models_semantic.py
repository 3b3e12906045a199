"""Networks with a semantic head: published counts and logits, names, faults, any network, files and folding."""

import copy

import numpy as np
import pytest
import torch
from test_models_official import official_file
from torch import nn
from torch.nn import functional

from models.add_semantic_head import DESIGNS, semantic_design, with_semantic
from models.architecture import known_names, read_architecture
from models.builder import build_network
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse, fuse_blocks
from models.layers.common import Conv
from models.network import Network
from models.summary import summarize
from models.transfer import state_for, transfer
from utils.core.errors import UserError

ROWS = {
    "psp": [[16, 19, 22], 1, "SegMaskPSP", ["n_segcls", 3, 256, False]],
    "bise": [[16, 19, 22], 1, "SegMaskBiSe", ["n_segcls", 3, 256, False]],
    "lab": [[4, 19], 1, "SegMaskLab", ["n_segcls", 3, 256, False]],
    "base": [[16], 1, "SegMaskBase", ["n_segcls", 3, 512, False]],
}
# with 10 box classes and 19 semantic ones: all parameters, the head's own, GFLOPs at 640
COUNTS = {
    "s-psp": (7_760_090, 672_275, 23.7),
    "s-bise": (8_842_112, 1_754_297, 26.1),
    "s-lab": (8_213_274, 1_125_459, 23.8),
    "s-base": (7_697_479, 609_664, 24.6),
    "m-psp": (22_601_914, 1_509_139, 66.4),
    "m-bise": (23_305_504, 2_212_729, 61.3),
    "m-lab": (23_435_834, 2_343_059, 63.4),
    "m-base": (22_782_183, 1_689_408, 72.6),
}


def street(size: str, design: str) -> dict:
    description = read_architecture(f"yolov5{size}_city_seg.yaml")
    rows = copy.deepcopy(description["head"])
    rows[-2] = ROWS[design]
    return {**description, "head": rows}


def lively(network: Network) -> Network:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", COUNTS)
def test_head_published_counts(name):
    size, design = name.split("-")
    with torch.device("meta"):
        summary = summarize(build_network(street(size, design)))
    parameters, own, gflops = COUNTS[name]
    assert (summary.parameters, int(summary.rows[24][3])) == (parameters, own)
    assert gflops - 0.4 < summary.gflops < gflops  # theirs counts the upsampling of all scores, which is not done here


@pytest.mark.parametrize("design", DESIGNS)
def test_multiyolov5_predictions(design, shared):
    checkpoint = load_checkpoint(shared / "weights" / f"random_multi_{design}.pt")
    network = checkpoint.network
    with np.load(shared / "reference" / f"random_multi_{design}_street.npz") as reference:
        images = torch.from_numpy(reference["input"]).permute(2, 0, 1)[None].float() / 255
        boxes, rows = reference["predictions"], torch.from_numpy(reference["row_index"])
        logits, classes = reference["semantic_logits_every4"], reference["semantic_argmax"]
    assert (checkpoint.source, checkpoint.task, semantic_design(network)) == ("yolov5", "detect", design)
    assert (len(checkpoint.names), len(network.specs["semantic"].names)) == (10, 19)
    assert network.specs["semantic"].names[::6] == ("road", "traffic light", "rider", "bicycle")
    for subject in (network, fuse(network)):
        with torch.inference_mode():
            decoded = subject.decode(subject(images))
        found = decoded["detect"]["predictions"][:, rows].numpy()
        np.testing.assert_allclose(found[..., :4], boxes[..., :4], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[..., 4:], boxes[..., 4:], atol=1e-4)
        full = functional.interpolate(
            decoded["semantic"]["logits"], images.shape[2:], mode="bilinear", align_corners=True
        )
        np.testing.assert_allclose(full[..., ::4, ::4].numpy(), logits, atol=1e-4)
        assert np.array_equal(full.argmax(dim=1).numpy(), classes)


@pytest.mark.parametrize("design", DESIGNS)
def test_raw_map_shapes(design):
    network = build_network(read_architecture(f"yolov5n-{design}"), 3, head_names={"semantic": ("a", "b", "c", "d")})
    images = torch.rand(2, 3, 64, 96)
    shapes = {name: tuple(value.shape) for name, value in network.train()(images)["semantic"].items()}
    more = {"aux16": (2, 4, 8, 12), "aux32": (2, 4, 4, 6)} if design == "bise" else {}
    assert shapes == {"logits": (2, 4, 8, 12), **more}
    raw = network.eval()(images)
    assert list(raw) == ["detect", "semantic"] and list(raw["semantic"]) == ["logits"]
    decoded = network.decode({"semantic": {"logits": raw["semantic"]["logits"].bfloat16()}})["semantic"]["logits"]
    assert (decoded.dtype, tuple(decoded.shape)) == (torch.float32, (2, 4, 8, 12))


@pytest.mark.parametrize("design", DESIGNS)
def test_every_parameter_has_a_gradient(design):
    head = build_network(with_semantic("yolov5n", design, 3, alone=True)).train()
    raw = head(torch.rand(1, 3, 64, 64))["semantic"]
    sum(value.square().mean() for value in raw.values()).backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]


def test_multiyolov5_config_names():
    for text, boxes, pixels, size in (
        ("yolov5s_city_seg.yaml", 10, 19, 0.5),
        ("models/yolov5m_city_seg.yaml", 10, 19, 0.75),
        ("yolov5m_citybdd.yaml", 5, 19, 0.75),
        ("yolov5s_custom_seg", 1, 2, 0.5),
    ):
        description = read_architecture(text)
        assert (description["nc"], description["n_segcls"], description["width_multiple"]) == (boxes, pixels, size)
        assert [row[2] for row in description["head"][-2:]] == ["SegMaskPSP", "Detect"]
        assert description["backbone"][0][2] == "Focus"


@pytest.mark.parametrize("ending", [*DESIGNS, "sem"])
def test_semantic_families_and_scales(ending):
    assert {f"yolov5{size}-{ending}" for size in "nsmlx"} <= set(known_names())
    description = read_architecture(f"yolov5x-{ending}")
    assert [row[2] for row in description["head"]].count("Detect") == (ending != "sem")
    network = build_network(read_architecture(f"yolov5n-{ending}"), 4)
    main = ("semantic", 4) if ending == "sem" else ("detect", 19)
    assert (network.task, network.specs["semantic"].num_classes) == main
    assert (len(network.names), network.stride) == (4, 32)


def test_semantic_network_number_of_classes():
    text = """
n_segcls: 3
head_names: {semantic: [sky, land, sea]}
backbone: [[-1, 1, Conv, [16, 3, 8]], [-1, 1, Conv, [16, 3, 2]]]
head: [[0, 1, SegMaskBase, [n_segcls, 3, 16, False]]]
"""
    network = build_network(read_architecture(text))
    assert (network.task, network.names, network.stride) == ("semantic", ("sky", "land", "sea"), 16)
    assert network.specs["semantic"].names == network.names and network.specs["semantic"].strides == ()
    assert build_network(network.architecture, 2, ("day", "night")).names == ("day", "night")
    assert build_network(network.architecture, 2).names == ("0", "1")
    renamed = build_network(network.architecture, names=("x", "y"), head_names={"semantic": ("p", "q", "r", "s")})
    assert (renamed.names, renamed.architecture["n_segcls"]) == (("p", "q", "r", "s"), 4)


def test_names_per_head():
    names = {"semantic": ["road", "sky"]}
    network = build_network(read_architecture("yolov5n_city_seg"), 3, ("car", "bus", "van"), head_names=names)
    assert (network.names, network.task) == (("car", "bus", "van"), "detect")
    assert {name: spec.names for name, spec in network.specs.items()} == {
        "semantic": ("road", "sky"),
        "detect": ("car", "bus", "van"),
    }
    assert network.architecture["head_names"] == names and network.architecture["n_segcls"] == 2
    other = build_network(network.architecture, 2, ("a", "b"))
    assert (other.names, other.class_names["semantic"]) == (("a", "b"), ("road", "sky"))
    with pytest.raises(UserError, match="10 classes, but 1 names"):
        build_network(read_architecture("yolov5n_city_seg"), names=("a",))


GOOD = """
nc: 2
n_segcls: 3
anchors: 1
backbone: [[-1, 1, Conv, [16, 3, 8]], [-1, 1, Conv, [16, 3, 2]], [-1, 1, Conv, [16, 3, 2]]]
head:
  - [[0, 1, 2], 1, SegMaskPSP, [n_segcls, 3, 32, False]]
  - [[0, 1, 2], 1, Detect, [nc, anchors]]
"""
FAULTS = {
    "no number of classes": (("n_segcls: 3", "classes: 3"), r"row 3 \(SegMaskPSP\).*`n_segcls:`|`n_segcls: None`"),
    "classes are text": (("n_segcls: 3", "n_segcls: many"), r"`n_segcls: many`"),
    "too many classes": (("n_segcls: 3", "n_segcls: 256"), r"row 3 \(SegMaskPSP\).*from 1 to 255"),
    "inputs": (("[[0, 1, 2], 1, SegMaskPSP", "[[0, 1], 1, SegMaskPSP"), r"row 3 \(SegMaskPSP\): takes 3 input"),
    "one input too many": (("SegMaskPSP", "SegMaskLab"), r"row 3 \(SegMaskLab\): takes 2 input"),
    "arguments": (("3, 32, False", "3, 32"), r"row 3 \(SegMaskPSP\): takes \[n_segcls, repeats"),
    "shortcut": (("3, 32, False", "3, 32, 7"), r"row 3 \(SegMaskPSP\): the fourth argument"),
    "channels": (("3, 32, False", "3, wide, False"), r"row 3 \(SegMaskPSP\).*no number of channels"),
    "repeats": (("3, 32, False", "x, 32, False"), r"row 3 \(SegMaskPSP\).*repeats"),
    "lab depth": (("[[0, 1, 2], 1, SegMaskPSP, [n_segcls, 3", "[[0, 1], 1, SegMaskLab, [n_segcls, 5"), "is above 4"),
    "order": (("[[0, 1, 2], 1, SegMaskPSP", "[[1, 0, 2], 1, SegMaskPSP"), r"row 3 \(SegMaskPSP\).*must be the finest"),
    "two of them": (("[[0, 1, 2], 1, Detect, [nc, anchors]]", "[[0], 1, SegMaskBase, [3, 3, 8, True]]"), "twice"),
    "names": (("nc: 2", "nc: 2\nhead_names: {semantic: sky}"), r"`head_names:`"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_semantic_row_errors(fault, tmp_path):
    (old, new), pattern = FAULTS[fault]
    assert old in GOOD
    path = tmp_path / "broken.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=pattern) as caught:
        build_network(read_architecture(path))
    assert "\n" not in str(caught.value) and "broken.yaml" in str(caught.value)
    build_network(read_architecture(GOOD))


# ----------------------------------------------------------------------------------------------------------------------
# Any network


@pytest.mark.parametrize(
    ("source", "inputs"),
    [
        ("yolov5n", {"psp": [16, 19, 22], "lab": [4, 19], "base": [16]}),
        ("yolov5n-seg", {"psp": [16, 19, 22], "lab": [4, 19], "base": [16]}),
        ("yolov5n6", {"psp": [22, 25, 28], "lab": [4, 25], "base": [22]}),
        ("yolov5n-p2", {"psp": [23, 26, 29], "lab": [4, 26], "base": [23]}),
        ("yolov5n-p34", {"psp": [16, 19, 10], "lab": [4, 19], "base": [16]}),
        ("yolov3-tiny", {"psp": [6, 18, 15], "lab": [6, 18], "base": [6]}),
    ],
)
def test_add_semantic_head(source, inputs):
    before = read_architecture(source)
    network = build_network(before, 2)
    for design, rows in inputs.items():
        beside = with_semantic(source, design, names=("sky", "land", "sea"))
        assert beside["head"][-1] == [rows, 1, DESIGNS[design][0], ["n_segcls", 3, DESIGNS[design][1], False]]
        both = build_network(beside, 2)
        assert set(both.heads) == {*network.heads, "semantic"} and semantic_design(both) == design
        report = transfer(both, state_for(both, network))
        assert report.matched == len(network.state_dict()) and not report.mismatched
        assert both.class_names["semantic"] == ("sky", "land", "sea")
        alone = build_network(with_semantic(source, design, 3, alone=True))
        assert list(alone.heads) == ["semantic"] and len(alone.names) == 3
        report, own = transfer(alone, state_for(alone, network)), f"model.{len(alone.model) - 1}."
        assert report.matched == sum(not name.startswith(own) for name in alone.state_dict())
        side = both.stride
        images = torch.rand(1, 3, side, side)
        for subject in (both, alone):
            logits = subject.eval()(images)["semantic"]["logits"]
            assert tuple(logits.shape) == (1, 3, side // 8, side // 8)


def test_add_semantic_head_to_user_yaml():
    own = with_semantic(read_architecture(GOOD), "base", 5)
    assert [row[2] for row in own["head"]] == ["SegMaskBase", "Detect"]  # in the old one's place
    assert build_network(own).specs["semantic"].num_classes == 5
    alone = with_semantic(read_architecture(GOOD), "lab", alone=True)
    assert [row[2] for row in [*alone["backbone"], *alone["head"]]] == ["Conv", "Conv", "SegMaskLab"]
    unused = GOOD.replace(
        "  - [[0, 1, 2], 1, Detect", "  - [0, 1, Conv, [8]]\n  - [4, 1, Conv, [8]]\n  - [[5, 1, 2], 1, Detect"
    )
    kept = with_semantic(read_architecture(unused), "base")  # looks at row 5, behind the old head
    assert [row[2] for row in kept["head"]] == ["nn.Identity", "Conv", "Conv", "Detect", "SegMaskBase"]
    assert semantic_design(build_network(kept)) == "base"
    with pytest.raises(UserError, match="no semantic design 'pps'"):
        with_semantic("yolov5n", "pps")
    two = "nc: 1\nanchors: 1\nbackbone: [[-1, 1, Conv, [8, 3, 4]]]\nhead: [[[0], 1, Detect, [nc, anchors]]]\n"
    with pytest.raises(UserError, match="needs a map at stride 8"):
        with_semantic(read_architecture(two), "psp")


def test_transfer_matches_heads_by_name():
    old, new = build_network(read_architecture("yolov5n-v5"), 10), build_network(read_architecture("yolov5n_city_seg"))
    report = transfer(new, state_for(new, old))
    assert report.matched == len(old.state_dict()) and not report.mismatched
    assert torch.equal(new.heads["detect"].m[0].weight, old.heads["detect"].m[0].weight)
    back = transfer(old, state_for(old, new))
    assert back.matched == back.total and not back.mismatched


# ----------------------------------------------------------------------------------------------------------------------
# Files and folding


@pytest.mark.parametrize("name", ["yolov5n-bise", "yolov5n_city_seg", "yolov5n-sem"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_heads_and_names(name, suffix, tmp_path):
    names = {"semantic": ("road", "sky", "sea")}
    network = lively(build_network(read_architecture(name), head_names=names))
    images = torch.rand(1, 3, 64, 64)
    for subject in (network, fuse(network)):
        path = tmp_path / f"net{suffix}"
        save_checkpoint(path, subject, {})
        loaded = load_checkpoint(path)
        assert loaded.network.specs == network.specs and loaded.task == network.task
        assert loaded.network.class_names["semantic"] == ("road", "sky", "sea")
        with torch.inference_mode():
            assert torch.equal(
                loaded.network(images)["semantic"]["logits"], copy.deepcopy(subject)(images)["semantic"]["logits"]
            )


@pytest.mark.parametrize("design", DESIGNS)
def test_fuse_semantic_head(design):
    network = lively(build_network(read_architecture(f"yolov5n-{design}"), 2))
    folded, images = fuse(network), torch.rand(2, 3, 64, 96)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(
            folded(images)["semantic"]["logits"], network(images)["semantic"]["logits"], rtol=1e-3, atol=1e-4
        )


def test_fused_multiyolov5_files(tmp_path, monkeypatch):
    network = lively(build_network(read_architecture(GOOD)))
    partly = fuse_blocks(network)
    partly.architecture = {k: v for k, v in partly.architecture.items() if k != "fused"}
    for module in partly.modules():
        if isinstance(module, Conv):
            module.__class__ = Conv  # our own kinds of it are unknown there
            del module.bn
    loaded = load_checkpoint(official_file(tmp_path / "folded.pt", partly, monkeypatch, "Model")).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = (subject(images)["semantic"]["logits"] for subject in (loaded, network))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # the file holds fp16
