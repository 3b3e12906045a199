"""Layers: golden vectors, sizes and equalities worked out by hand."""

import pytest
import torch
from torch import nn

from models.layers.activations import AconC, FReLU, MetaAconC, parse_activation
from models.layers.attention import C3TR, TransformerBlock
from models.layers.common import Conv, DWConv, DWConvTranspose2d, Sum, same_padding, set_activation
from models.layers.csp import C3, BottleneckCSP, C3x, CrossConv
from models.layers.ghost import C3Ghost, GhostBottleneck
from models.layers.mixconv import MixConv2d, split_channels
from models.layers.pool import C3SPP, SPP, SPPF
from models.layers.space_to_depth import Contract, Expand, Focus


def test_focus_pixel_order():
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    assert Focus.blocks(ramp).flatten().tolist() == [0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15]
    assert Contract(2)(ramp).flatten().tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    expanded = Expand(2)(torch.arange(16.0).view(1, 4, 2, 2)).flatten().tolist()
    assert expanded == [0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15]


def test_expand_inverts_contract():
    image = torch.rand(2, 3, 8, 12)
    assert torch.equal(Expand(2)(Contract(2)(image)), image)


def test_mixconv_channel_split():
    assert split_channels(24, (1, 3, 5), equal=True) == [8, 8, 8]
    assert split_channels(24, (1, 3, 5), equal=False) == [21, 2, 1]
    assert MixConv2d(16, 24, (1, 3, 5), 2, equal_channels=False)(torch.rand(2, 16, 8, 8)).shape == (2, 24, 4, 4)
    with pytest.raises(ValueError, match="cannot be split"):
        MixConv2d(4, 2, (1, 3, 5))


def test_sppf_equals_spp():
    slow, fast = SPP(16, 24), SPPF(16, 24)
    fast.load_state_dict(slow.state_dict())
    image = torch.rand(1, 16, 20, 17)
    assert torch.equal(slow.eval()(image), fast.eval()(image))


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (DWConv(6, 9, 3), 9),
        (C3x(6, 8, 2), 8),
        (C3Ghost(6, 8, 1), 8),
        (C3SPP(8, 8), 8),
        (C3TR(6, 16, 2), 16),
        (BottleneckCSP(6, 8, 2), 8),
        (CrossConv(6, 8, 3, 1, 1, 1.0, True), 8),
        (TransformerBlock(6, 8, 2, 1), 8),
        (FReLU(6), 6),
        (AconC(6), 6),
        (MetaAconC(6), 6),
    ],
)
def test_block_output_shapes(layer, channels):
    assert layer(torch.rand(2, 6 if not isinstance(layer, C3SPP) else 8, 7, 5)).shape == (2, channels, 7, 5)


def test_ghost_bottleneck_stride_2():
    assert GhostBottleneck(8, 8)(torch.rand(1, 8, 5, 5)).shape == (1, 8, 5, 5)
    block = GhostBottleneck(6, 8, 3, 2)
    assert block(torch.rand(1, 6, 8, 8)).shape == (1, 8, 4, 4)
    assert "shortcut.1.conv.weight" in block.state_dict()
    assert "conv.0.cv1.conv.weight" in block.state_dict()


def test_transposed_depthwise_convolution():
    assert DWConvTranspose2d(6, 4, 2, 2)(torch.rand(1, 6, 3, 5)).shape == (1, 4, 6, 10)


def test_weighted_sum_initial_weights():
    layer = Sum(3, weighted=True)
    first, second, third = (torch.full((1, 1, 1, 1), value) for value in (1.0, 10.0, 100.0))
    weights = 2 * torch.sigmoid(torch.tensor([-0.5, -1.0]))
    assert layer([first, second, third]).item() == pytest.approx(1 + 10 * weights[0].item() + 100 * weights[1].item())
    assert Sum(2)([first, second]).item() == 11


def test_same_padding():
    assert same_padding(3) == 1
    assert same_padding(3, 2) == 2
    assert same_padding((1, 5)) == (0, 2)
    assert Conv(2, 2, 3, dilation=2)(torch.rand(1, 2, 9, 9)).shape == (1, 2, 9, 9)


def test_legacy_activation_argument():
    assert isinstance(Conv(2, 2, 1, 1, None, 1, False).act, nn.Identity)


def test_c3_shortcut_needs_equal_channels():
    assert all(block.add for block in C3(4, 8, 2).m)
    assert not any(block.add for block in C3(4, 8, 2, False).m)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nn.LeakyReLU(0.1)", -0.1),
        ("nn.LeakyReLU(negative_slope=0.5)", -0.5),
        ("nn.ReLU()", 0.0),
        ("torch.nn.Identity()", -1.0),
        ("nn.SiLU", -0.26894),
        ("Hardswish()", -1 / 3),
        ("MemoryEfficientMish()", -0.30340),
    ],
)
def test_activation_from_text(text, value):
    assert parse_activation(text)(4)(torch.tensor(-1.0)).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "nn.Linear(3, 3)",
        "nn.LeakyReLU(open('x'))",
        "nn.LeakyReLU(steep=1)",
        "lambda x: x",
        "nn.SiLU if 1 else 2",
        "os.system",
        "nn.SiLU(" + "(" * 150,
        "x" * 500,
        "",
    ],
)
def test_activation_text_is_not_executed(text):
    with pytest.raises(ValueError, match=r"activation"):
        parse_activation(text)


def test_channel_wise_activations():
    layer = nn.Sequential(Conv(3, 4), Conv(4, 6, activation=False))
    set_activation(layer, parse_activation("FReLU"))
    assert layer[0].act.conv.weight.shape[0] == 4
    assert isinstance(layer[1].act, nn.Identity)
