"""From YAML to network: every family, exact parameter counts, and one line for every mistake."""

import math

import pytest
import torch
from torch import nn

from models.architecture import known_names, read_architecture
from models.builder import build_network, classification_network, round_up
from models.fuse import fuse
from models.heads.detect import Detect
from models.layer_plan import HEADS, LAYERS
from models.layers.csp import C3
from models.layers.space_to_depth import Focus
from models.network import Network
from models.summary import summarize
from utils.core.errors import UserError

# parameters, parameters after fusing, GFLOPs at 640, the same after fusing, entries of the state
DETECTION = {
    "yolov5n": (1_872_157, 1_867_405, 4.56, 4.47, 349),
    "yolov5s": (7_235_389, 7_225_885, 16.63, 16.44, 349),
    "yolov5m": (21_190_557, 21_172_173, 49.24, 48.88, 481),
    "yolov5l": (46_563_709, 46_533_693, 109.59, 109.00, 613),
    "yolov5x": (86_749_405, 86_705_005, 206.32, 205.45, 745),
    "yolov5n6": (3_246_940, 3_239_884, 4.66, 4.56, 459),
    "yolov5s6": (12_626_620, 12_612_508, 16.99, 16.80, 459),
    "yolov5m6": (35_731_932, 35_704_908, 50.28, 49.92, 627),
    "yolov5l6": (76_770_172, 76_726_332, 111.84, 111.24, 795),
    "yolov5x6": (140_794_780, 140_730_220, 210.45, 209.57, 963),
    "yolov5n-seg": (1_991_549, 1_986_637, 7.19, 7.07, 367),
    "yolov5s-seg": (7_621_277, 7_611_485, 26.59, 26.36, 367),
    "yolov5m-seg": (21_990_397, 21_971_597, 71.27, 70.85, 499),
    "yolov5l-seg": (47_924_957, 47_894_397, 148.39, 147.73, 631),
    "yolov5x-seg": (88_819_517, 88_774_445, 266.62, 265.67, 763),
    "yolov3": (61_949_149, 61_922_845, 156.6, 155.9, 439),
    "yolov3-spp": (62_998_749, 62_971_933, 157.5, 156.7, 445),
    "yolov3-tiny": (8_852_366, 8_849_182, 13.3, 13.2, 71),
    "yolov5-bifpn": (46_825_853, 46_795_837, 110.4, 109.8, 613),
    "yolov5-fpn": (41_117_565, 41_090_877, 100.3, 99.8, 547),
    "yolov5-panet": (46_563_709, 46_533_693, 109.59, 109.00, 613),
    "yolov5-p6": (76_770_172, 76_726_332, 111.84, 111.24, 795),
    "yolov5-p2": (47_493_372, 47_461_436, 126.3, 125.6, 711),
    "yolov5-p34": (5_331_518, 5_323_806, 15.1, 14.9, 311),
    "yolov5-p7": (144_281_723, 144_216_251, 116.5, 115.9, 977),
    "yolov5s-ghost": (3_897_605, 3_888_789, 8.88, 8.71, 529),
    "yolov5s-transformer": (7_235_645, 7_226_653, 16.4, 16.2, 348),
    "yolov5s-LeakyReLU": (7_235_389, 7_225_885, 16.63, 16.44, 349),
    # v5.0: operations are published after folding only; the state there has one buffer more, anchor_grid
    "yolov5s-v5": (7_276_605, 7_266_973, None, 17.0, 361),
    "yolov5m-v5": (21_375_645, 21_356_877, None, 51.2, None),
    "yolov5l-v5": (47_056_765, 47_025_981, None, 115.3, None),
    "yolov5x-v5": (87_775_965, 87_730_285, None, 218.6, None),
    "yolov5s6-v5": (12_667_836, 12_653_596, None, 17.3, None),
    "yolov5m6-v5": (35_917_020, 35_889_612, None, 52.3, None),
    "yolov5l6-v5": (77_263_228, 77_218_620, None, 117.5, None),
    "yolov5x6-v5": (141_821_340, 141_755_500, None, 222.7, None),
}
CLASSIFICATION = {  # 1000 classes, at 224
    "yolov5n": (2_493_000, 2_489_464, 0.37, 0.36, 194),
    "yolov5s": (5_453_480, 5_447_688, 1.29, 1.27, 194),
    "yolov5m": (12_957_640, 12_947_192, 3.79, 3.76, 278),
    "yolov5l": (26_552_680, 26_535_976, 8.42, 8.37, 362),
    "yolov5x": (48_097_160, 48_072_600, 15.87, 15.79, 446),
}
# the published count leaves out what happens inside attention: projections 2*4*T*c^2, products 4*T^2*c, T=400, c=256
ATTENTION_GFLOPS = (8 * 400 * 256**2 + 4 * 400**2 * 256) / 1e9


def empty(name: str, **options: object) -> Network:
    with torch.device("meta"):
        return build_network(read_architecture(name), **options)  # type: ignore[arg-type]


def check(network: Network, size: int, expected: tuple, attention: float = 0.0) -> None:
    parameters, folded_parameters, gflops, folded_gflops, entries = expected
    summary, folded = summarize(network, size), summarize(fuse(network), size)
    assert (summary.parameters, folded.parameters) == (parameters, folded_parameters)
    for found, published in ((summary.gflops, gflops), (folded.gflops, folded_gflops)):
        assert published is None or found - attention == pytest.approx(published, rel=0.01, abs=0.005)
    assert entries is None or len(network.state_dict()) == entries


@pytest.mark.parametrize("name", DETECTION)
def test_detector_published_counts(name):
    check(empty(name), 640, DETECTION[name], ATTENTION_GFLOPS if "transformer" in name else 0.0)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classifier_published_counts(name):
    with torch.device("meta"):
        network = classification_network(build_network(read_architecture(name)), 1000)
    check(network, 224, CLASSIFICATION[name])
    by_name = empty(f"{name}-cls")
    assert by_name.state_dict().keys() == network.state_dict().keys()
    check(by_name, 224, CLASSIFICATION[name])


def test_yolov5s_parameters_per_layer():
    expected = [
        3520, 18560, 18816, 73984, 115712, 295424, 625152, 1180672, 1182720, 656896, 131584, 0, 0, 361984, 33024, 0, 0,
        90880, 147712, 0, 296448, 590336, 0, 1182720, 229245,
    ]  # fmt: skip
    assert [int(row[3]) for row in summarize(empty("yolov5s")).rows] == expected


SMALLEST = sorted(
    {n for n in known_names() if "n" in n.removeprefix("yolo")[:3] or n.startswith("polyolo-n")} | {"yolov3-tiny"}
)


@pytest.mark.parametrize("name", [n for n in SMALLEST if "n_segcls" not in read_architecture(n)])
def test_every_architecture_runs_and_decodes(name):
    network = build_network(read_architecture(name), num_classes=3)
    side = 2 * network.stride
    raw = network.eval()(torch.rand(1, 3, side, side))
    (head,) = network.heads
    spec = network.specs[head]
    cells = sum((side // stride) ** 2 for stride in spec.strides)
    columns = 5 + 3 + spec.num_masks
    anchors = 1 if spec.bins else 3
    for index, stride in enumerate(spec.strides):
        grid = (side // stride, side // stride)
        shape = (1, 4 * spec.bins + 3 + spec.num_masks, *grid) if spec.bins else (1, 3, *grid, columns)
        assert raw[head][f"level{index}"].shape == shape
    decoded = network.decode(raw)[head]
    if head == "classify":
        assert decoded["probabilities"].shape == (1, 3) and not decoded["probabilities"].isnan().any()
        return
    assert decoded["predictions"].shape == (1, anchors * cells, columns)
    assert not decoded["predictions"].isnan().any()
    if head == "segment":
        assert decoded["prototypes"].shape == (1, 32, side // 4, side // 4)


def test_segment_golden_shapes():
    network = build_network(read_architecture("yolov5n-seg")).eval()
    decoded = network.decode(network(torch.zeros(1, 3, 256, 320)))["segment"]
    assert decoded["predictions"].shape == (1, 5040, 117)
    assert decoded["prototypes"].shape == (1, 32, 64, 80)


def test_forward_return_type():
    network = build_network(read_architecture("yolov3-tiny"), 2)
    for mode in (True, False):
        raw = network.train(mode)(torch.zeros(2, 3, 64, 64))
        assert {name: list(levels) for name, levels in raw.items()} == {"detect": ["level0", "level1"]}


def test_decoding_golden_vector():
    anchors = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
    head = Detect(3, anchors, (8, 8, 8))
    head.configure((8, 16, 32))
    sizes = ((2, 3), (1, 2), (1, 1))
    raw = {f"level{i}": torch.zeros(1, 3, h, w, 8, dtype=torch.bfloat16) for i, (h, w) in enumerate(sizes)}
    predictions = head.decode(raw)["predictions"]
    assert predictions.shape == (1, 27, 8)
    assert predictions.dtype == torch.float32
    rows = {0: (4, 4, 10, 13), 1: (12, 4, 10, 13), 3: (4, 12, 10, 13), 6: (4, 4, 16, 30), 18: (8, 8, 30, 61),
            20: (8, 8, 62, 45), 24: (16, 16, 116, 90)}  # fmt: skip
    for row, box in rows.items():
        assert predictions[0, row, :4].tolist() == pytest.approx(box)
    assert (predictions[..., 4:] == 0.5).all()


def test_initial_strides_anchors_and_biases():
    network = build_network(read_architecture("yolov5n"))
    head, spec = network.heads["detect"], network.specs["detect"]
    assert (spec.strides, network.stride, network.names[:2]) == ((8, 16, 32), 32, ("0", "1"))
    assert spec.anchors[0] == ((10, 13), (16, 30), (33, 23))
    assert head.anchors[2, 0].tolist() == [116 / 32, 90 / 32]  # the buffer holds grid units
    means = [conv.bias.view(3, 85)[:, 4].mean().item() for conv in head.m]
    assert means == pytest.approx([-6.684612, -5.298317, -3.912023], abs=0.15)  # convolutions start near zero
    classes = torch.cat([conv.bias.view(3, 85)[:, 5:].flatten() for conv in head.m]).mean().item()
    assert classes == pytest.approx(-4.880274, abs=0.05)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    assert all((norm.running_var == 1).all() for norm in norms)


def test_bias_initialisation_single_class():
    head = Detect(1, [[10, 13], [30, 61]], (4, 4))
    before = [conv.bias.detach().clone().view(1, 6) for conv in head.m]
    head.configure((8, 64))
    offsets = [(conv.bias.view(1, 6) - old)[0].tolist() for conv, old in zip(head.m, before, strict=True)]
    assert offsets[0] == pytest.approx([0, 0, 0, 0, math.log(8 / 80**2), 11.0021], abs=1e-4)
    assert offsets[1][4] == pytest.approx(-2.525729, abs=1e-6)


def test_anchor_order_by_mean_area():
    # falling in pixels but, divided by the strides, growing: only the pixels count
    head = Detect(1, [[40, 40], [16, 16]], (4, 4))
    head.configure((8, 4))
    assert (head.anchors * torch.tensor([8.0, 4.0]).view(2, 1, 1)).flatten().tolist() == [40, 40, 16, 16]
    reversed_head = Detect(1, [[300, 300], [10, 10]], (4, 4))
    reversed_head.configure((8, 32))
    assert reversed_head.spec.anchors == (((10, 10),), ((300, 300),))


def test_set_anchors():
    network = build_network(read_architecture("yolov5n"), 2)
    anchors = torch.arange(1.0, 19).view(3, 3, 2)
    network.set_anchors("detect", anchors)
    assert network.specs["detect"].anchors[1][0] == (7, 8)
    again = build_network(network.architecture)
    assert torch.equal(again.heads["detect"].anchors, network.heads["detect"].anchors)
    with pytest.raises(ValueError, match="shape"):
        network.set_anchors("detect", torch.ones(3, 4, 2))


def test_placeholder_anchors():
    network = build_network(read_architecture("yolov5n"), 2, anchors_per_level=2)
    assert network.specs["detect"].anchors == (((0, 1), (2, 3)),) * 3


def test_width_rounding():
    assert [round_up(value, 8) for value in (4, 9, 12.75, 33, 100)] == [8, 16, 16, 40, 104]


@pytest.mark.parametrize(
    ("text", "name", "rows"),
    [
        ("yolov5s.yaml", "yolov5s", 25),
        ("models/yolov5s.yaml", "yolov5s", 25),
        ("yolov5s-seg", "yolov5s-seg", 25),
        ("models/segment/yolov5m-seg.yaml", "yolov5m-seg", 25),
        ("models/hub/yolov5-p2.yaml", "yolov5-p2", 32),
        ("yolov5n6", "yolov5n6", 34),
        ("hub/yolov3-tiny.yaml", "yolov3-tiny", 21),
        ("yolov5s6-v5", "yolov5s6-v5", 34),
        (" yolov5x ", "yolov5x", 25),
    ],
)
def test_model_names(text, name, rows):
    description = read_architecture(text)
    assert (description["name"], len(description["backbone"]) + len(description["head"])) == (name, rows)


def test_existing_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov5s.yaml").write_text(USER_YAML)
    assert read_architecture("yolov5s.yaml")["nc"] == 7


def test_unknown_name_suggests_nearest():
    with pytest.raises(UserError, match=r"yolov5sseg\.yaml: no such model YAML.*yolov5s-seg"):
        read_architecture("yolov5sseg.yaml")


USER_YAML = """
# a model as a user of YOLOv5 writes it
nc: 7 # number of classes
depth_multiple: 0.33
width_multiple: 0.25
ch: 1
inplace: True
activation: nn.LeakyReLU(0.1)
channel_multiple: 4
anchors:
  - [10,13, 16,30]
  - [30,61, 62,45]
backbone:
  [[-1, 1, Focus, [64, 3]],
   [-1, 1, Conv, [128, 3, 2]],
   [-1, 3, C3, [128]],
   [-1, 1, Conv, [256, 3, 2]],
   [-1, 9, BottleneckCSP, [256, False]],
   [-1, 1, SPP, [256, [3, 5]]],
  ]
head:
  [[-1, 1, nn.Upsample, [None, 2, 'nearest']],
   [[-1, 2], 1, Concat, [1]],
   [-1, 1, Conv, [36, 1, 1]],
   [[8, 5], 1, Detect, [nc, anchors]],
  ]
"""


def test_user_yolov5_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(USER_YAML)
    network = build_network(read_architecture(path))
    assert (network.specs["detect"].num_classes, network.specs["detect"].strides) == (7, (4, 8))
    assert isinstance(network.model[0], Focus)
    assert isinstance(network.model[2], C3)
    assert len(network.model[4].m) == 3
    assert network.model[0].conv.conv.out_channels == 16
    assert isinstance(network.model[0].conv.act, nn.LeakyReLU)
    assert isinstance(network.model[4].act, nn.SiLU)
    assert network.model[8].conv.out_channels == 12  # 36 x 0.25 = 9, up to a multiple of 4
    assert network(torch.zeros(1, 1, 64, 64))["detect"]["level1"].shape == (1, 2, 8, 8, 12)
    assert build_network(read_architecture(USER_YAML), num_classes=2).specs["detect"].num_classes == 2


def test_head_output_width_is_not_scaled():
    text = USER_YAML.replace("[36, 1, 1]", "[24, 1, 1]")  # 2 anchors x (7 + 5)
    assert build_network(read_architecture(text)).model[8].conv.out_channels == 24


def test_activation_is_per_network():
    build_network(read_architecture(USER_YAML))
    assert isinstance(build_network(read_architecture("yolov5n")).model[0].act, nn.SiLU)


def replaced(old: str, new: str) -> str:
    assert old in USER_YAML
    return USER_YAML.replace(old, new)


FAULTS = {
    "unknown module": (replaced("3, C3,", "3, C33,"), r"row 2 \(C33\).*did you mean"),
    "later row": (replaced("[[-1, 2], 1,", "[[-1, 12], 1,"), r"row 7 \(Concat\): takes its input from row 12"),
    "too far back": (replaced("[-1, 1, SPP,", "[-9, 1, SPP,"), r"row 5 \(SPP\): takes its input from row -9"),
    "no head key": (USER_YAML.split("head:")[0], r"`head:`.*missing"),
    "no nc": (replaced("nc: 7", "classes: 7"), r"`nc: None`"),
    "multiple is text": (replaced("0.33", "small"), r"depth_multiple: small"),
    "multiple is negative": (replaced("0.25", "-1"), r"width_multiple: -1"),
    "anchor levels": (replaced("  - [30,61, 62,45]\n", ""), r"row 9 \(Detect\).*2 input levels"),
    "odd anchors": (replaced("[30,61, 62,45]", "[30,61, 62]"), r"anchors of level 1"),
    "too many arguments": (replaced("[128, 3, 2]", "[128, 3, 2, 1, 1, 1, 1, 1, 1]"), r"row 1 \(Conv\)"),
    "argument is text": (replaced("[128, 3, 2]", "[128, three, 2]"), r"row 1 \(Conv\)"),
    "no channels": (replaced("[128, 3, 2]", "[]"), r"row 1 \(Conv\): the first argument"),
    "short row": (replaced("[-1, 1, SPP, [256, [3, 5]]]", "[-1, 1, SPP]"), r"row 5 \(SPP\): a row must be"),
    "row is text": (replaced("[-1, 1, SPP, [256, [3, 5]]]", "SPP"), r"row 5: a row must be"),
    "sizes differ": (replaced("[[-1, 2], 1,", "[[-1, 0], 1,"), r"row 7 \(Concat\): Sizes of tensors must match"),
    "repeats": (replaced("3, C3,", "0, C3,"), r"row 2 \(C3\): the second entry"),
    "activation": (replaced("nn.LeakyReLU(0.1)", "os.system('true')"), r"activation"),
    "output of a head": (replaced("   [[8, 5], 1, Detect, [nc, anchors]],",
     "   [[8, 5], 1, Detect, [nc, anchors]],\n   [-1, 1, Conv, [8]],"), r"row 10 \(Conv\).*a head"),
    "two heads of one name": (replaced("   [[8, 5], 1, Detect, [nc, anchors]],",
     "   [[8, 5], 1, Detect, [nc, anchors]],\n   [[8, 5], 1, Detect, [nc, anchors]],"), r"two heads named 'detect'"),
    "no head": (replaced("   [[8, 5], 1, Detect, [nc, anchors]],\n", ""), r"is a head"),
    "key twice": (USER_YAML + "nc: 8\n", r"duplicate key"),
    "not yaml": (replaced("backbone:", "backbone: ]"), r"invalid YAML"),
    "no anchors": (replaced("anchors:", "anchor:"), r"row 9 \(Detect\): needs the key `anchors:`"),
    "base": ("base: yolov9\nnc: 1\nscales: {n: [1, 1]}\n", r"no such family"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_yaml_errors(fault, tmp_path):
    text, pattern = FAULTS[fault]
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=pattern) as caught:
        build_network(read_architecture(path))
    assert "\n" not in str(caught.value)
    assert "broken.yaml" in str(caught.value) or fault == "base"


def test_names_must_match_classes():
    with pytest.raises(UserError, match="80 classes, but 2 names"):
        build_network(read_architecture("yolov5n"), names=("a", "b"))


def test_classifier_from_detector():
    detector = build_network(read_architecture("yolov5n"), 3)
    classifier = classification_network(detector, 5, ("a", "b", "c", "d", "e"))
    assert torch.equal(
        classifier.state_dict()["model.6.cv1.conv.weight"], detector.state_dict()["model.6.cv1.conv.weight"]
    )
    assert classifier.heads["classify"].conv.bn.eps == 1e-5
    decoded = classifier.eval().decode(classifier(torch.rand(2, 3, 64, 64)))["classify"]
    assert decoded["probabilities"].sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (classifier.names[4], classifier.stride, classifier.task) == ("e", 32, "classify")
    rebuilt = build_network(classifier.architecture)
    assert rebuilt.state_dict().keys() == classifier.state_dict().keys()


def test_several_heads():
    text = """
nc: 2
anchors: 1
backbone:
  - [-1, 1, Conv, [8, 3, 8]]
  - [-1, 1, Classify, [nc]]
  - [0, 1, Conv, [8, 3, 2]]
head:
  - [[0, 2], 1, Detect, [nc, anchors]]
"""
    network = build_network(read_architecture(text))
    raw = network.eval()(torch.zeros(1, 3, 32, 32))
    assert list(raw) == ["classify", "detect"]
    assert raw["detect"]["level1"].shape == (1, 1, 2, 2, 7)
    assert network.decode(raw)["classify"]["probabilities"].shape == (1, 2)
    assert network.stride == 16


def test_registered_layers_have_a_plan():
    assert all(callable(LAYERS.get(name).plan) for name in LAYERS.names())
    assert {"detect", "segment", "classify"} <= set(HEADS.names())
