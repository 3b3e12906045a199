"""Schedule, optimizer groups, averaging: values computed by hand or known golden values."""

import math

import pytest
import torch
from torch import nn

from utils.core.hyp import Hyp
from utils.engine.ema import ModelEma, decay_at
from utils.engine.parameter_groups import build_optimizer, clip_gradients, parameter_groups
from utils.engine.schedules import SchedulePoint
from utils.engine.schedules.lr_curves import cosine, linear
from utils.engine.step_schedule import Schedule


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (1, 0.9967), (150, 0.505), (299, 0.0133), (300, 0.01)])
def test_linear_schedule_golden_values(epoch, factor):
    assert linear(SchedulePoint(epoch, 300)) == pytest.approx(factor, abs=5e-5)


def test_cosine_schedule_golden_values():
    assert cosine(SchedulePoint(1, 300)) == pytest.approx(0.999973, abs=1e-6)
    assert cosine(SchedulePoint(299, 300)) == pytest.approx(0.010027, abs=1e-6)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_parameter_groups():
    net = network()
    groups = parameter_groups(net)
    assert groups["bias"] == [net[0].bias, net[1].bias, net[2].bias]
    assert groups["decay"] == [net[0].weight, net[2].weight] and groups["norm"] == [net[1].weight]
    net[0].weight.requires_grad_(False)
    assert parameter_groups(net)["decay"] == [net[2].weight]


def test_weight_decay_scaling():
    for batch, decay in ((16, 5e-4), (64, 5e-4), (128, 1e-3), (40, 5e-4 * 40 * 2 / 64)):
        optimizer = build_optimizer(network(), "SGD", Hyp(), batch, torch.device("cpu"))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, pytest.approx(decay), 0.0]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp"])
def test_fused_optimizer_matches_plain(name):
    torch.manual_seed(0)
    ours = network().to(memory_format=torch.channels_last)
    plain = network()
    plain.load_state_dict(ours.state_dict())
    hyp = Hyp(lr0=0.1)
    optimizer = build_optimizer(ours, name, hyp, 64, torch.device("cpu"))
    groups = [
        {"params": params, "weight_decay": 5e-4 if role == "decay" else 0.0}
        for role, params in parameter_groups(plain).items()
    ]
    if name == "SGD":
        reference = torch.optim.SGD(groups, lr=0.1, momentum=hyp.momentum, nesterov=True, foreach=False)
    elif name == "RMSProp":
        reference = torch.optim.RMSprop(groups, lr=0.1, momentum=hyp.momentum, foreach=False)
    else:
        more = {"decoupled_weight_decay": True} if name in ("NAdam", "RAdam") else {}
        reference = getattr(torch.optim, name)(groups, lr=0.1, betas=(hyp.momentum, 0.999), foreach=False, **more)
    for step in range(3):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            b.grad = torch.randn(b.shape, generator=torch.Generator().manual_seed(step))
            a.grad = torch.empty_like(a).copy_(b.grad)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_warm_up():
    plan = Schedule(Hyp(), epochs=10, steps_per_epoch=50, batch_size=16)
    optimizer = build_optimizer(network(), "SGD", Hyp(), 16, torch.device("cpu"))
    assert plan.warmup_steps == 150
    plan.apply(optimizer, epoch=0, step=0)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.1), 0.0, 0.0]
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.8)
    plan.apply(optimizer, epoch=1, step=75)
    goal = 0.01 * (0.9 * 0.99 + 0.01)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(goal / 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx((0.1 + goal) / 2)
    plan.apply(optimizer, epoch=4, step=200)
    assert optimizer.param_groups[2]["lr"] == pytest.approx(0.01 * (0.6 * 0.99 + 0.01))
    assert [plan.accumulate(step) for step in (0, 75, 150, 151)] == [1, round(1 + 3 * 0.5), 4, 4]


def test_warm_up_disabled():
    plan = Schedule(Hyp(warmup_epochs=0), epochs=10, steps_per_epoch=5, batch_size=64)
    optimizer = build_optimizer(network(), "SGD", Hyp(), 64, torch.device("cpu"))
    plan.apply(optimizer, 0, 0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 3 and plan.accumulate(0) == 1


@pytest.mark.parametrize(
    ("updates", "decay"),
    [(1, 4.99825e-4), (10, 0.00498702), (100, 0.0487657), (1000, 0.39343), (2000, 0.632057), (20000, 0.999855)],
)
def test_ema_decay_ramp(updates, decay):
    assert decay_at(updates) == pytest.approx(decay, rel=2e-5)


def test_ema_averages_parameters_and_statistics():
    torch.manual_seed(1)
    net = network()
    ema = ModelEma(net)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for update in range(1, 4):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.add_(1)
        ema.update()
        d = 0.9999 * (1 - math.exp(-update / 2000))
        for name, tensor in net.state_dict().items():
            if tensor.dtype.is_floating_point:
                expected[name] = d * expected[name] + (1 - d) * tensor
    for name, tensor in ema.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert ema.network.state_dict()["1.num_batches_tracked"].item() == 0
    assert not ema.network.training and not any(p.requires_grad for p in ema.network.parameters())


def test_gradient_clipping():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 10.0)
    assert clip_gradients([weight]).item() == pytest.approx(20.0)
    assert weight.grad.norm().item() == pytest.approx(10.0, rel=1e-4)
