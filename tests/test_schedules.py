"""Learning-rate schedules at hand-computed points; optimizers, layer-wise rates and checkpointing in training runs."""

import importlib
import math

import pytest
import torch
from helpers_run import same, tiny_data, weights

from models.builder import build_network
from utils.core.cli import explicit_options
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.train_options import resolve_training, training_parser
from utils.core.train_settings import MINDSPORE_SCHEDULES, TrainSettings
from utils.core.yaml_file import write_yaml
from utils.engine.parameter_groups import build_optimizer
from utils.engine.schedules import SCHEDULES, SchedulePoint
from utils.engine.step_schedule import StepSchedule

CPU = torch.device("cpu")


def at(name, epoch, **more):
    return SCHEDULES.get(name)(SchedulePoint(epoch, **({"epochs": 100, "final": 0.01} | more)))


@pytest.mark.parametrize(
    ("name", "epoch", "more", "factor"),
    [
        ("constant", 73, {}, 1.0),
        ("exponential", 0, {}, 1.0),
        ("exponential", 50, {}, 0.1),  # the root of 0.01
        ("exponential", 100, {}, 0.01),
        ("polynomial", 50, {"power": 2.0, "final": 0.2}, 0.25 * 0.8 + 0.2),
        ("polynomial", 50, {"power": 1.0}, 0.505),  # a straight line
        ("multi-step", 219, {"epochs": 300}, 1.0),
        ("multi-step", 220, {"epochs": 300}, 0.1),
        ("multi-step", 250, {"epochs": 300}, 0.01),
        ("multi-step", 8, {"steps": (3, 8), "gamma": 0.5}, 0.25),
        ("cosine-restarts", 0, {"cycles": 4}, 1.0),
        ("cosine-restarts", 25, {"cycles": 4}, 1.0),
        ("cosine-restarts", 12.5, {"cycles": 4}, 0.505),
        ("cosine-restarts", 37.5, {"cycles": 4}, 0.505),
        ("one-cycle", 0, {}, 0.04),
        ("one-cycle", 15, {}, 0.52),  # half-way between 0.04 and 1
        ("one-cycle", 30, {}, 1.0),
        ("one-cycle", 65, {}, 0.505),
        ("one-cycle", 100, {}, 0.01),
        ("cosine_annealing_V2", 30, {"epochs": 90, "final": 0.0}, 0.75),  # a third of a half cosine: cos 60 degrees
        ("cosine_annealing_V2", 60, {"epochs": 90, "final": 0.0}, (1 + math.cos(math.pi * 59 / 90)) / 2),
        ("cosine_annealing_V2", 75, {"epochs": 90, "final": 0.0}, (1 + math.cos(math.pi * 59 / 90)) / 4),
        ("cosine_annealing_sample", 60, {"epochs": 300, "final": 0.0}, (1 + math.cos(math.pi * 60 / 300)) / 2),
        ("cosine_annealing_sample", 100, {"epochs": 300, "final": 0.0}, (1 + math.cos(math.pi * 140 / 300)) / 2),
        ("cosine_annealing_sample", 200, {"epochs": 300, "final": 0.0}, (1 + math.cos(math.pi * 260 / 300)) / 2),
        ("cosine_annealing_sample", 290, {"epochs": 300, "final": 0.0}, 0.0),
    ],
)
def test_schedule_values(name, epoch, more, factor):
    assert at(name, epoch, **more) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_schedule_range(name):
    for epochs in (1, 2, 3, 100):
        factors = [at(name, epoch, epochs=epochs) for epoch in range(epochs)]
        assert all(0 < factor <= 1 for factor in factors) and max(factors[:40]) > 0.03


def test_help_lists_schedules():
    text = "".join(training_parser("").format_help().split())  # without line breaks
    assert all(name in text for name in (*SCHEDULES.names(), "RMSProp", "psp", "tensorboard"))
    assert set(MINDSPORE_SCHEDULES.values()) <= set(SCHEDULES.names())


def settings_of(line, recommended=None):
    parser = training_parser("")
    return resolve_training(parser, explicit_options(parser, line.split()), recommended or {}, "data.yaml")[0]


@pytest.mark.parametrize(
    ("line", "curve"),
    [
        ("", "linear"), ("--cos-lr", "cosine"), ("--linear-lr", "linear"), ("--schedule one-cycle", "one-cycle"),
        ("--schedule cosine --cos-lr", "cosine"), ("--lr_scheduler exponential", "multi-step"),
        ("--lr_scheduler cosine_annealing", "cosine"), ("--schedule exponential", "exponential"),
    ],
)  # fmt: skip
def test_schedule_spellings(line, curve):
    assert settings_of(line).schedule_name == curve


def test_command_line_overrides_recommendation():
    assert settings_of("--schedule constant", {"cos_lr": True}).schedule_name == "constant"
    assert settings_of("--linear-lr", {"schedule": "constant"}).schedule_name == "linear"
    assert settings_of("", {"schedule": "constant"}).schedule_name == "constant"
    assert settings_of("--lr_epochs 220,250 --lr_gamma 0.2").lr_epochs == (220, 250)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--schedule constant --cos-lr", "give one of them"), ("--lr-epochs 5 5", "ascending"),
        ("--lr-gamma 0", "above"), ("--layer-decay 1.5", "at most 1"), ("--lr-cycles 0", "at least 1"),
        ("--lr_epochs 2,x", "220,250"), ("--lr_scheduler warm", "cosine_annealing_V2"),
        ("--backbone-warmup -1", "at least 0"),
    ],
)  # fmt: skip
def test_invalid_schedule_options(line, says):
    with pytest.raises(UserError, match=says):
        settings_of(line)


def network():
    return build_network("yolov5n.yaml", head_names={"detect": ("a", "b")})


def test_layer_decay():
    net = network()
    optimizer = build_optimizer(net, "SGD", Hyp(), 64, CPU, layer_decay=0.5)
    scale = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    for row, expected in ((24, 1.0), (23, 0.5), (21, 0.125), (0, 0.5**24)):
        assert {scale[id(p)] for p in net.model[row].parameters()} == {expected}
    plan = StepSchedule(Hyp(warmup_epochs=0), 10, 5, 64)
    plan.apply(optimizer, 0, 0)
    assert {group["lr"] for group in optimizer.param_groups if group["scale"] == 0.5} == {0.005}


def test_learning_rate_of_the_semantic_head():
    net = build_network("yolov5n-psp.yaml", head_names={"detect": ("a", "b"), "semantic": ("x", "y")})
    optimizer = build_optimizer(net, "AdamW", Hyp(seg_lr=10.0), 64, CPU)
    head = {id(p) for p in net.heads["semantic"].parameters()}
    raised = {id(p) for group in optimizer.param_groups if group["scale"] == 10 for p in group["params"]}
    assert raised == head and len(optimizer.param_groups) == 6
    hyp = Hyp(lr0=0.01, warmup_epochs=2, warmup_min_steps=0, warmup_bias_lr=0.1)
    plan = StepSchedule(hyp, 10, 5, 64, "constant")
    rates = {  # by step: weights of other layers and of the head, biases of other layers and of the head
        0: (0.0, 0.0, 0.1, 0.1),
        5: (0.005, 0.05, 0.055, 0.1),
        20: (0.01, 0.1, 0.01, 0.1),
    }
    for step, wanted in rates.items():
        plan.apply(optimizer, step // 5, step)
        found = {(group["role"] == "bias", group["scale"]): group["lr"] for group in optimizer.param_groups}
        assert [found[key] for key in sorted(found)] == pytest.approx(wanted)


def test_backbone_warm_up():
    net = network()
    optimizer = build_optimizer(net, "AdamW", Hyp(), 64, CPU, separate_backbone=True)
    backbone = {id(p) for row in range(10) for p in net.model[row].parameters()}
    marked = {id(p) for group in optimizer.param_groups if group["backbone"] for p in group["params"]}
    assert marked == backbone and len(optimizer.param_groups) == 6
    plan = StepSchedule(Hyp(warmup_epochs=0), 10, 5, 64, "constant", backbone_warmup=2.0)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (40, 1.0)):
        plan.apply(optimizer, step // 5, step)
        rates = {group["backbone"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {True: pytest.approx(0.01 * share), False: 0.01}


BASE = {"cfg": "yolov5n", "imgsz": [64], "batch_size": 4, "workers": 0, "noplots": True, "noval": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=12, val=4, size=64)


def train(data, runs, name, **chosen):
    write_yaml(runs / "hyp.yaml", {"nominal_batch": 4, "warmup_epochs": 0.0})
    options = BASE | {"data": str(data), "project": str(runs), "hyp": str(runs / "hyp.yaml"), "name": name}
    importlib.import_module("train").run(**(options | chosen))
    return runs / name / "weights"


@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": "NAdam", "schedule": "one-cycle", "layer_decay": 0.7, "checkpointing": True},
        {"optimizer": "RAdam", "schedule": "cosine-restarts", "lr_cycles": 2, "backbone_warmup": 2.0},
    ],
    ids=["nadam", "radam"],
)
def test_resume_is_bit_exact(data, tmp_path, chosen):
    folder = train(data, tmp_path, "run", epochs=3, save_period=1, **chosen)
    whole = weights(folder / "last.pt")
    importlib.import_module("train").run(resume=str(folder / "epoch0.pt"), workers=0)
    assert same(weights(folder / "last.pt"), whole)


def test_activation_checkpointing_is_bit_exact(data, tmp_path):
    """BatchNorm statistics and counters among them: the second pass must not count."""
    plain = train(data, tmp_path, "plain", epochs=1)
    sparing = train(data, tmp_path, "sparing", epochs=1, checkpointing=True)
    assert same(weights(sparing / "last.pt"), weights(plain / "last.pt"))


def test_activation_checkpointing_saves_memory():
    net = network().train()

    def kept_bytes(checkpointing):
        net.checkpointing = checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            net(torch.rand(2, 3, 64, 64))
        return sum(sizes)

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_unknown_names_suggest_nearest(data, tmp_path):
    for chosen, says in (({"optimizer": "adam"}, "did you mean 'Adam'"), ({"schedule": "cosin"}, "mean 'cosine'")):
        with pytest.raises(UserError, match=says):
            train(data, tmp_path, "bad", **chosen)
    assert not (tmp_path / "bad").exists()


def test_settings_of_old_checkpoints():
    assert TrainSettings.from_dict({"cos_lr": True, "epochs": 3}).schedule_name == "cosine"
