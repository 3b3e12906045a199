"""`--recipe auto`: what it chooses from the data, what explicit options keep, and its parts."""

import importlib

import numpy as np
import pytest
import torch
from helpers_run import tiny_data, weights
from torch import nn

from utils.core.contracts import HeadSpec
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.core.yaml_file import read_yaml
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.engine.ema import ModelEma, decay_at
from utils.engine.recipe import apply_recipe
from utils.engine.recipe_auto import choose, class_weights, closed_epochs
from utils.engine.recipe_facts import Facts
from utils.engine.schedules import SCHEDULES, SchedulePoint
from utils.engine.step_schedule import StepSchedule


class Data:
    """Loader with the numbers that the recipe reads."""

    num_images = 640
    heads = ()
    class_counts = np.array([3600, 400])


def test_small_data_get_a_step_per_batch():
    choice = choose(Facts(640, 2400, 60, 16, pretrained=True))
    assert choice.settings == {"optimizer": "AdamW", "schedule": "flat-cosine", "patience": 20}
    assert choice.hyp["nominal_batch"] == 16
    assert choice.hyp["lr0"] == 0.001 and choice.hyp["warmup_epochs"] == 3 and choice.hyp["close_mosaic"] == 10
    assert choose(Facts(640, 2400, 60, 16, pretrained=False)).hyp["lr0"] == 0.004
    assert choose(Facts(9000, 2400, 60, 64, pretrained=True)).hyp["lr0"] == 0.002  # grows with the root of the batch
    schedule = StepSchedule(Hyp(**choice.hyp), epochs=60, steps_per_epoch=40, batch_size=16)
    assert schedule.accumulate(0) == schedule.accumulate(100) == 1 and schedule.warmup_steps == 120


@pytest.mark.parametrize(
    ("facts", "batch"),
    [
        (Facts(205, 4000, 12, 16, pretrained=True), 4),
        (Facts(205, 4000, 12, 64, pretrained=True), 4),
        (Facts(205, 4000, 12, 6, pretrained=True), 6),  # half of it would be less than 4
        (Facts(205, 4000, 12, 64, pretrained=True, processes=16), 16),
        (Facts(205, 4000, 12, 16, pretrained=True, fixed_batch=True), 16),
        (Facts(2050, 4000, 12, 64, pretrained=True), 32),
        (Facts(205, 4000, 40, 16, pretrained=True), 16),
    ],
)
def test_very_few_images_get_smaller_batches(facts, batch):
    choice = choose(facts)
    assert choice.settings.get("batch_size", facts.batch_size) == choice.hyp["nominal_batch"] == batch
    assert choice.hyp["lr0"] == pytest.approx(0.001 * (batch / 16) ** 0.5, abs=1e-6)
    assert any("batch size" in reason for reason in choice.reasons) == (batch < facts.batch_size)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((3600, 400), (0.833, 2.5)),  # 4000 / (60 + 20), divided by 60 and 20
        ((100, 100, 0), (1.0, 1.0, 1.0)),
        ((10_000, 1), (0.99, 4.0)),
        ((7, 0), ()),
        ((), ()),
    ],
)
def test_class_weights(counts, weights):
    assert class_weights(counts) == weights


def test_class_weights_are_those_of_anchor_free_heads():
    anchor_free = HeadSpec("detect", 2, (8, 16, 32), bins=16)
    with_anchors, semantic = HeadSpec("detect", 2, (8, 16, 32)), HeadSpec("semantic", 2, (8,))
    auto = TrainSettings(recipe="auto")
    for specs, heads, wanted in (
        ({"detect": anchor_free}, (), (0.833, 2.5)),
        ({"detect": anchor_free, "semantic": semantic}, ("detect", "semantic"), (0.833, 2.5)),
        ({"detect": anchor_free, "semantic": semantic}, ("semantic",), None),  # the counts are pixels
        ({"detect": with_anchors}, (), None),
    ):
        data = Data()
        data.heads = heads
        assert apply_recipe(auto, Hyp(), data, specs)[1].dense_class_weights == wanted
    given = Hyp(dense_class_weights=(1.0, 3.0))
    explicit = TrainSettings(recipe="auto", explicit=("hyp",))
    assert apply_recipe(explicit, given, Data(), {"detect": anchor_free})[1].dense_class_weights == (1.0, 3.0)


def test_large_data_keep_the_defaults():
    choice = choose(Facts(118_000, 800_000, 100, 16, pretrained=False))
    assert choice.settings == {"patience": 33} and choice.hyp == {"close_mosaic": 10.0}
    assert any("SGD" in reason for reason in choice.reasons)


@pytest.mark.parametrize(("epochs", "closed"), [(1, 0), (2, 0), (3, 1), (8, 4), (12, 6), (21, 10), (300, 10)])
def test_epochs_without_mosaic(epochs, closed):
    assert closed_epochs(epochs) == closed


def test_explicit_options_win():
    given = {"optimizer": "SGD", "patience": 7, "lr0": 0.5}
    settings = TrainSettings(recipe="auto", explicit=tuple(given), **given)
    settings, hyp = apply_recipe(settings, Hyp(lr0=0.5), Data(), {})
    assert (settings.optimizer, settings.patience, hyp.lr0) == ("SGD", 7, 0.5)
    assert settings.schedule == "flat-cosine" and hyp.nominal_batch == 16
    settings = TrainSettings(recipe="auto", explicit=("cos_lr", "hyp"), cos_lr=True)
    settings, hyp = apply_recipe(settings, Hyp(lr0=0.003, nominal_batch=32), Data(), {})
    assert (settings.schedule_name, hyp.lr0, hyp.nominal_batch) == ("cosine", 0.003, 32)
    assert settings.optimizer == "AdamW" and hyp.weight_decay == 0.01


def test_without_the_option_nothing_changes(caplog):
    settings, hyp = TrainSettings(), Hyp()
    with caplog.at_level("INFO", "polyolo"):
        assert apply_recipe(settings, hyp, Data(), {}) == (settings, hyp)
    assert "--recipe auto would use AdamW" in caplog.text
    caplog.clear()
    Data.num_images, before = 118_000, Data.num_images
    with caplog.at_level("INFO", "polyolo"):
        apply_recipe(settings, hyp, Data(), {})
    Data.num_images = before
    assert not caplog.text


def test_unknown_recipe():
    with pytest.raises(UserError, match="--recipe best: must be one of auto"):
        TrainSettings(recipe="best")


def test_flat_cosine():
    at = [SCHEDULES.get("flat-cosine")(SchedulePoint(epoch, 100, 0.2)) for epoch in (0, 49, 75, 100)]
    assert at == pytest.approx([1, 1, 0.6, 0.2])


def test_decay_and_ramp_of_the_average():
    assert decay_at(10, 0.5, 10) == pytest.approx(0.5 * (1 - 0.36787944))
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    ema = ModelEma(network, 0.5, 1e-9)
    nn.init.zeros_(network.weight)
    ema.update()
    assert float(ema.network.weight.detach()) == 0.5


@pytest.mark.parametrize(
    ("script", "cfg"),
    [("train", "yolov5n"), ("train", "polyolo-n"), ("segment.train", "yolov5n-seg"), ("train", "yolov5n-sem")],
)
def test_recipe_of_every_task(script, cfg, tmp_path):
    data = tiny_data(tmp_path, train=16, val=8, size=64)
    options = {"cfg": cfg, "imgsz": [64], "batch_size": 8, "workers": 0, "noplots": True, "epochs": 3}
    importlib.import_module(script).run(data=str(data), project=str(tmp_path), name="run", recipe="auto", **options)
    written = read_yaml(tmp_path / "run" / "args.yaml") | read_yaml(tmp_path / "run" / "hyp.yaml")
    assert (written["optimizer"], written["nominal_batch"], written["close_mosaic"]) == ("AdamW", 8, 1)
    assert weights(tmp_path / "run" / "weights" / "last.pt")


@pytest.mark.parametrize(
    ("script", "cfg"), [("train", "polyolo-n"), ("train", "yolov5n-sem"), ("segment.train", "yolov5n-seg")]
)
def test_batches_of_the_recipe(script, cfg, tmp_path):
    data = tiny_data(tmp_path, train=16, val=8, size=64)
    options = {"cfg": cfg, "imgsz": [64], "workers": 0, "noplots": True, "epochs": 2, "save_period": 1}
    program = importlib.import_module(script)
    program.run(data=str(data), project=str(tmp_path), name="run", recipe="auto", **options)
    assert read_yaml(tmp_path / "run" / "args.yaml")["batch_size"] == 4
    first = torch.load(tmp_path / "run" / "weights" / "epoch0.pt", weights_only=True)
    assert first["training"]["state"]["global_step"] == 4


def test_mosaic_is_closed_in_the_last_epochs(tmp_path):
    from utils.core.data_config import load_data
    from utils.core.load_request import LoadRequest
    from utils.datasets.generators.prepare import ensure_generated

    data = load_data(str(tiny_data(tmp_path, train=8, val=4, size=64)))
    ensure_generated(data)
    plain = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "translate": 0.0, "scale": 0.0, "fliplr": 0.0}
    hyp = Hyp(**plain, close_mosaic=2.0)
    loader = open_box_loader(LoadRequest(data, "train", True, 64, 8, 32, hyp, epochs=5, workers=0))

    def whole(epoch):
        """Count the boxes of an epoch: images as they are have all labels, whole."""
        return sum(len(batch.boxes) for batch in loader.epoch(epoch))

    total = sum(map(len, loader.labels))
    assert [whole(epoch) == total for epoch in (3, 4)] == [True, True]
    assert not all(whole(epoch) == total for epoch in (0, 1, 2))
