"""Blocks of the semantic heads: values worked out by hand, and short cuts beside the plain way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.fuse import fold
from models.kernels import conv_commute as coarse
from models.kernels.conv_commute import pointwise, with_levels
from models.kernels.winograd import MIN_CHANNELS, WideConv, convolved, pays, transformed
from models.layer_plan import LAYERS, Row
from models.layers import fusion
from models.layers.common import Conv
from models.layers.context import ASPP, RFB1, RFB2, ASPPs, PyramidPooling, WideC3SPP
from models.layers.fusion import ARM, DAPPM, FFM, Attention, resize_like
from models.layers.pool import SPP, max_pools


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisation statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.3, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(part.bias, -0.3, 0.3, generator=generator)
    return module.eval()


BLOCKS = {  # block, its input channels, its output channels, parameters counted by hand
    # hidden 4: 3 x Conv1x1 16->4 (64+8) less one, Conv3x3 4->4 (144+8), two dilated of it, last 1x1 16->8 (128+16)
    "RFB2": (RFB2(16, 8), 16, 8, 2 * 72 + 3 * 152 + 144),
    "RFB2 global": (RFB2(16, 8, with_global_pool=True), 16, 8, 2 * 72 + 3 * 152 + (16 + 8) + (20 * 8 + 16)),
    "RFB1": (RFB1(16, 8), 16, 8, 4 * 72 + 3 * 152 + (400 + 8) + 3 * 152 + 144),
    "RFB1 global": (RFB1(16, 8, with_global_pool=True), 16, 8, 4 * 72 + 6 * 152 + 408 + 72 + 176),
    "ASPP": (ASPP(16, 8), 16, 8, 72 + 3 * (16 * 4 * 9 + 8) + 72 + 176),
    "ASPP plain": (
        ASPP(16, 8, with_global_pool=False, reduction=2),
        16,
        8,
        (128 + 16) + 3 * (16 * 8 * 9 + 16) + 32 * 8 + 16,
    ),
    "ASPPs": (ASPPs(16, 8), 16, 8, 72 + 152 + 3 * (72 + 152) + 72 + 176),
    # hidden 8, deep 12: two 16->8, SPP 8->12 (4 hidden: 40, 16->12: 216), 20->6
    "C3SPP": (WideC3SPP(16, 6), 16, 6, 2 * 144 + 40 + 216 + 132),
    "PyramidPooling": (PyramidPooling(16), 16, 32, 4 * (64 + 8)),
    "FFM": (FFM(16, 8, 2, inputs_are_a_list=False, kernel=3), 16, 8, 16 * 8 * 9 + 16 + 2 * 32),
    "ARM": (ARM(16, 8), 16, 8, 16 * 8 * 9 + 16 + 64 + 16),
    "Attention": (Attention(16, 4), 16, 16, 64 + 8 + 64 + 32),
    # before 4 scales and the first: BN 16 + 16x4; four BN 4 + 3x3; BN 20 + 20x8; BN 16 + 16x8
    "DAPPM": (DAPPM(16, 4, 8), 16, 8, 5 * (32 + 64) + 4 * (8 + 144) + (40 + 160) + (32 + 128)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_shapes_and_parameters(name):
    block, c1, c2, parameters = BLOCKS[name]
    assert block.train()(torch.rand(2, c1, 13, 9)).shape == (2, c2, 13, 9)
    assert block.eval()(torch.rand(1, c1, 3, 2)).shape == (1, c2, 3, 2)
    assert sum(p.numel() for p in block.parameters()) == parameters


@pytest.mark.parametrize("name", ["RFB2 global", "ASPP", "PyramidPooling", "ARM", "Attention", "DAPPM"])
def test_global_pooling_blocks_train_on_one_image(name):
    block, c1, _, _ = copy.deepcopy(BLOCKS[name])
    block.train()(torch.rand(1, c1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_receptive_fields():
    def reach(block: nn.Module) -> int:
        x = torch.zeros(1, 16, 1, 41, requires_grad=True)
        lively(block)(x)[0, :, 0, 20].sum().backward()
        return int(x.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()[-1]) - 20

    assert reach(RFB2(16, 8, dilation=(2, 3))) == 1 + 2 + 3  # one after the other
    assert reach(RFB1(16, 8, dilation=(3, 5, 7))) == 2 + 7  # side by side, after 3x3 or 5x5
    assert reach(ASPP(16, 8, dilation=(3, 6, 9), with_global_pool=False)) == 9
    assert reach(ASPPs(16, 8, dilation=(3, 6, 8), with_global_pool=False)) == 8


def test_attention_of_one_half():
    x = torch.rand(1, 4, 5, 3)
    joined = FFM(4, 4, inputs_are_a_list=True)
    nn.init.zeros_(joined.channel_attention[3].weight)
    joined.eval()
    torch.testing.assert_close(joined([x[:, :1], x[:, 1:]]), 1.5 * joined.convblk(x))
    refine, attention = ARM(4, 4).eval(), Attention(4).eval()
    for block in (refine, attention):
        nn.init.zeros_(block.channel_attention[1].conv.weight)
    torch.testing.assert_close(refine(x), 0.5 * refine.conv(x))
    torch.testing.assert_close(attention(x), 0.5 * x)


def test_pyramid_pooling():
    block = PyramidPooling(4, (2,))
    nn.init.dirac_(block.conv1.conv.weight)
    block.conv1.bn, block.conv1.act = nn.Identity(), nn.Identity()
    x = torch.tensor([[1.0, 3, 5, 7]]).repeat(4, 1).expand(1, 4, 4, 4)
    found = block(x)
    assert torch.equal(found[:, :4], x)
    # halves of a row have means 2 and 6; four pixels between corners: 2, 3 1/3, 4 2/3, 6
    torch.testing.assert_close(found[0, 4, 0], torch.tensor([2, 10 / 3, 14 / 3, 6]))


def test_blocks_from_yaml():
    def plan(word, channels, *arguments):
        return LAYERS.get(word).plan(Row(channels, arguments, 1, lambda c: c // 2))

    for word in ("RFB1", "RFB2", "ASPP", "ASPPs", "ARM"):
        assert (plan(word, (16,), 8).out_channels, plan(word, (16,), 8).arguments[:2]) == (4, (16, 4))
    assert plan("FFM", (16, 8), 8).arguments == (24, 4)
    assert plan("PyramidPooling", (16,)).out_channels == 32
    assert plan("PyramidPooling", (16,), [1, 2]).out_channels == 24
    assert plan("Attention", (16,), 4).out_channels == 16
    assert plan("DAPPM", (16,), 8, 4).arguments == (16, 2, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RFB2(16, 8, reduction=17),
        lambda: RFB2(16, 8, dilation=(2, 3, 4)),
        lambda: ASPP(16, 8, dilation=(3, 0, 9)),
        lambda: PyramidPooling(16, ()),
        lambda: PyramidPooling(3),
        lambda: FFM(16, 8, reduction=9),
        lambda: Attention(16, 0),
        lambda: SPP(16, 8, (4,)),
    ],
)
def test_invalid_arguments(wrong):
    with pytest.raises(ValueError, match=r"divided|dilations|pools"):
        wrong()


def test_chained_pools_equal_larger_pools():
    x = torch.randn(2, 3, 17, 11)
    for sizes in ((5, 9, 13), (3, 5, 7), (13, 5), (1, 3)):
        plain = [functional.max_pool2d(x, size, 1, size // 2) for size in sizes]
        assert all(torch.equal(a, b) for a, b in zip(max_pools(x, sizes), plain, strict=True))
        with torch.no_grad():  # down and across
            assert all(torch.equal(a, b) for a, b in zip(max_pools(x, sizes), plain, strict=True))


def test_resize_modes():
    like = torch.rand(1, 1, 5, 3)
    x = torch.rand(2, 4, 5, 3)
    assert resize_like(x, like) is x
    assert torch.equal(resize_like(x[..., :1, :1], like, "bilinear"), x[..., :1, :1].expand(-1, -1, 5, 3))
    grown = resize_like(torch.tensor([[[[0.0, 4], [8, 12]]]]), like, "bilinear")
    assert grown[0, 0, 0].tolist() == [0, 2, 4]
    assert grown[0, 0, :, 0].tolist() == [0, 2, 4, 6, 8]


# ----------------------------------------------------------------------------------------------------------------------
# Short cuts


def both_ways(function, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    short = function()
    with monkeypatch.context() as patch:
        patch.setattr(coarse, "use_cpu_kernels", lambda x: False)
        patch.setattr(fusion, "use_cpu_kernels", lambda x: False)
        plain = function()
    return short, plain


@pytest.mark.parametrize("training", [False, True])
def test_pointwise_conv_commutes_with_resize(training, monkeypatch):
    block = lively(Conv(2 + 3 + 4, 5).double()).train(training)
    maps = [torch.rand(2, 2, 12, 20), torch.rand(2, 3, 6, 10), torch.rand(2, 4, 3, 7)]
    short, plain = both_ways(lambda: pointwise(block, [m.double() for m in maps]), monkeypatch)
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("folded", [False, True])
def test_conv3x3_after_resize(folded, monkeypatch):
    block = lively(WideConv(4 + 3 + 2 + 2, 5).double())
    if folded:
        with torch.no_grad():
            block.conv, block.bn = fold(block.conv, block.bn), nn.Identity()
    x = torch.rand(2, 4, 9, 14).double()
    levels = [torch.rand(2, 3, 1, 1), torch.rand(2, 2, 6, 6), torch.rand(2, 2, 3, 2)]
    short, plain = both_ways(lambda: with_levels(block, x, [level.double() for level in levels]), monkeypatch)
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)
    assert short.shape == (2, 5, 9, 14)


def test_resize_add_in_place(monkeypatch):
    lasting = [torch.rand(2, c, h, w).double() for c, h, w in ((4, 12, 20), (3, 6, 10), (4, 1, 1), (4, 2, 3))]
    maps = [m.to(memory_format=torch.channels_last) for m in lasting]
    one, three = lively(Conv(4 + 3 + 4, 5).double()), lively(WideConv(4 + 3 + 4 + 4, 5).double())
    added = []
    monkeypatch.setattr(coarse, "_added", lambda *a, real=coarse._added: added.append(1) or real(*a))
    with torch.inference_mode():
        for function in (
            lambda: pointwise(one, [maps[0], maps[1], maps[2]]),
            lambda: with_levels(three, maps[0], maps[1:]),
        ):
            short, plain = both_ways(function, monkeypatch)
            torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)
    assert len(added) == 3 and all(torch.equal(m, kept) for m, kept in zip(maps, lasting, strict=True))
    short, plain = both_ways(lambda: pointwise(one, [maps[0], maps[1], maps[2]]), monkeypatch)
    short.sum().backward()  # what inference has kept serves in training, too
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)


def test_inplace_ops_do_not_alias_inputs():
    x = torch.rand(1, 6, 8, 8).to(memory_format=torch.channels_last)
    kept = x.clone()
    for block in (Conv(6, 6), RFB2(6, 6, reduction=1), ASPP(6, 6), WideC3SPP(6, 6), SPP(6, 6)):
        lively(block)
        wanted = block(x)
        with torch.no_grad():
            torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(x, kept)
    fusion = lively(FFM(6, 6, inputs_are_a_list=False, kernel=3))
    wanted = fusion(x)
    with torch.no_grad():
        torch.testing.assert_close(fusion(x), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)


def test_fast_paths_have_plain_gradients(monkeypatch):
    block = lively(WideConv(5, 4).double()).train()
    x, level = torch.rand(2, 3, 8, 8).double(), torch.rand(2, 2, 2, 2).double()

    def gradient():
        block.zero_grad()
        inputs = [x.clone().requires_grad_(), level.clone().requires_grad_()]
        with_levels(block, inputs[0], inputs[1:]).square().sum().backward()
        return torch.cat([t.grad.flatten() for t in (*inputs, block.conv.weight)])

    short, plain = both_ways(gradient, monkeypatch)
    torch.testing.assert_close(short, plain, rtol=1e-9, atol=1e-9)


def test_attention_folded_into_classifier_per_image(monkeypatch):
    block, classify = FFM(6, 6, inputs_are_a_list=False, kernel=3).double().eval(), nn.Conv2d(6, 4, 1).double().eval()
    x = torch.rand(3, 6, 5, 7).double()
    assert block.channel_attention(x).std() > 0
    short, plain = both_ways(lambda: block.classify(x, classify), monkeypatch)
    assert not torch.equal(short, plain)  # another way was taken
    torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain, classify(block.reweight(x)))


@pytest.mark.parametrize("size", [(32, 40), (33, 42), (35, 31), (4, 300)])
def test_winograd_matches_plain_convolution(size):
    torch.manual_seed(0)
    x = torch.randn(2, 7, *size).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(5, 7, 3, 3), torch.randn(5)
    plain = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = convolved([x], transformed(weight), bias)
    assert found.shape == plain.shape
    assert (found - plain).abs().max() < 2e-5 * plain.abs().max()
    assert torch.equal(
        convolved([x[:1]], transformed(weight), bias), convolved([x[:1].contiguous()], transformed(weight), bias)
    )
    assert torch.equal(convolved([x[:, :3], x[:, 3:]], transformed(weight), bias), found)


def test_winograd_with_scale_and_silu():
    torch.manual_seed(0)
    x, factors = torch.randn(2, 7, 33, 30).contiguous(memory_format=torch.channels_last), torch.rand(2, 7, 1, 1) + 0.5
    weight, bias = torch.randn(5, 7, 3, 3), torch.randn(5)
    plain = functional.silu(functional.conv2d((x * factors).double(), weight.double(), bias.double(), padding=1))
    before = x.clone()
    found = convolved([x], transformed(weight), bias, factors, silu=True)
    assert (found - plain).abs().max() < 2e-5 * plain.abs().max()
    assert torch.equal(x, before)  # the map may be somebody else's


def test_wide_convolution_scales(monkeypatch):
    block = lively(WideConv(MIN_CHANNELS, MIN_CHANNELS)).requires_grad_(False).eval()
    x, factors = torch.randn(1, MIN_CHANNELS, 32, 32), torch.rand(1, MIN_CHANNELS, 1, 1)
    short = block(x, factors=factors)
    monkeypatch.setattr("models.kernels.winograd.pays", lambda x, weight: False)
    torch.testing.assert_close(short, block(x, factors=factors), rtol=1e-3, atol=1e-4)


def test_winograd_only_in_inference():
    block = lively(WideConv(MIN_CHANNELS, MIN_CHANNELS)).requires_grad_(False)
    x = torch.randn(1, MIN_CHANNELS, 32, 32)
    assert pays(x, block.conv.weight)
    assert not pays(x[..., :31], block.conv.weight)
    assert not pays(x.double(), block.conv.weight)
    assert not pays(x.clone().requires_grad_(), block.conv.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(x, block.conv.weight)
    plain = Conv.forward

    def check():
        torch.testing.assert_close(block(x), plain(block, x), rtol=1e-4, atol=1e-4)

    check()
    assert not block._kernels
    with torch.no_grad():
        block.conv, block.bn = fold(block.conv, block.bn), nn.Identity()
    check()
    assert list(block._kernels) == [MIN_CHANNELS]  # kept: a folded network is not trained any more
    with torch.no_grad():
        block.conv.weight.mul_(-2)
    check()
    block.load_state_dict(
        {**block.state_dict(), "conv.weight": 0.03 * torch.randn_like(block.conv.weight)}, assign=True
    )
    check()
    assert not copy.deepcopy(block)._kernels
    assert WideConv(4, 4).state_dict().keys() == Conv(4, 4).state_dict().keys()
    block.requires_grad_(True)
    assert not pays(x, block.conv.weight)
