"""Options: the exact list per script, the old spellings, and where values come from."""

import importlib
from pathlib import Path

import pytest

from utils.core.cli import explicit_options
from utils.core.errors import UserError
from utils.core.train_options import format_origins, resolve_training
from utils.core.train_settings import TrainSettings
from utils.core.val_settings import ValSettings

OPTIONS = {
    "train": """
        --adam --allow-label-faults --amp --autobalance --backbone-warmup --base-size --batch-size --bbox_interval
        --bbox_iou_optim --cache --cache-images --cfg --checkpointing --compile --cos-lr --data --deterministic
        --device --download --entity --epochs --eval_epoch_interval --eval_start_epoch --evolve --evolve-population
        --evolve_population --exist-ok --fitness --freeze --freeze-bn --help --hyp --image-weights --img --img-size
        --imgsz --label-smoothing --layer-decay --linear-lr --local-rank --local_rank --log --lr-cycles --lr-epochs
        --lr-gamma --lr-power --lr_epochs --lr_gamma --lr_scheduler --mosaic-window --multi-scale
        --multi_tensor_optimizer --name --no-tf32 --noautoanchor --noplots --nosave --notest --noval --optimizer
        --patience --picture-interval --profile --project --quad --rect --resize-rate --resize_rate --resume
        --resume-evolve --resume_evolve --save-keep --save-period --save-steps --save_ckpt_interval
        --save_ckpt_max_num --save_period --schedule --seed --seg-interval --seg-mode --seg-mosaic --seg-share
        --semantic --single-cls --slimming --sync-bn --val-interval --val-start --weights --workers""",
    "val": """
        --absent-as-zero --allow-label-faults --annotations --augment --base-size --batch-size --compile --conf-thres
        --data --device --dnn --download --exist-ok --half --help --img --img-size --imgsz --iou-thres --max-det
        --name --no-tf32 --noplots --project --save-conf --save-hybrid --save-json --save-txt --seg-flip --seg-mode
        --seg-scales --seg-window --segdata --single-cls --task --verbose --weights --workers""",
}


def parser_of(script):
    return importlib.import_module(script).build_parser()


@pytest.mark.parametrize("script", OPTIONS)
def test_option_list(script):
    found = {o for action in parser_of(script)._actions for o in action.option_strings if o.startswith("--")}
    assert sorted(found) == sorted(OPTIONS[script].split())


def test_options_match_settings():
    of_searches = {"evolve", "evolve_population", "resume_evolve"}
    dests = {action.dest for action in parser_of("train")._actions} - {"help", "local_rank"} - of_searches
    switches_of_others = {"bbox_iou_optim", "multi_tensor_optimizer"}
    of_masks = {"mask_ratio", "no_overlap"}  # segment/train.py adds them
    of_classes = {"lr0", "decay", "dropout", "cutoff", "pretrained", "verbose"}  # classify/train.py has them
    found = {action.dest for action in parser_of("classify.train")._actions} - {"help", "local_rank", "model"}
    assert of_classes <= found <= dests | of_classes
    of_segmenters = {action.dest for action in parser_of("segment.train")._actions}
    assert of_segmenters - {"help", "local_rank"} == dests | of_masks | of_searches
    assert dests - switches_of_others | of_masks | of_classes == set(TrainSettings().to_dict())


def test_parser_defaults_equal_settings_defaults():
    parser = parser_of("train")
    assert TrainSettings.from_dict(vars(parser.parse_args([]))) == TrainSettings()
    assert ValSettings.from_dict(vars(parser_of("val").parse_args([]))) == ValSettings()


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--img 320", "imgsz", [320]), ("--img-size 640 640", "imgsz", [640, 640]), ("--batch 8", "batch_size", 8),
        ("--weights ''", "weights", "''"), ("--notest", "noval", True), ("--adam", "optimizer", "Adam"),
        ("--cache-images", "cache", "ram"), ("--cache", "cache", "ram"), ("--cache disk", "cache", "disk"),
        ("--linear-lr", "cos_lr", False), ("--multi_tensor_optimize", "multi_tensor_optimizer", True),
        ("--local_rank 1", "local_rank", 1), ("--local-rank=1", "local_rank", 1), ("--resume", "resume", "newest"),
        ("--multi-scale", "multi_scale", True), ("--multi-scale 320 352", "multi_scale", [320, 352]),
        ("--resize_rate 10", "resize_rate", 10), ("--evolve", "evolve", 300), ("--evolve 30", "evolve", 30),
        ("--eval_start_epoch 100", "val_start", 100), ("--eval_epoch_interval 10", "val_interval", 10),
        ("--save_ckpt_max_num 5", "save_keep", 5), ("--save_ckpt_interval 2", "save_period", 2),
        ("--freeze 10", "freeze", [10]), ("--freeze 0 1 2", "freeze", [0, 1, 2]), ("--hyp a.yaml", "hyp", "a.yaml"),
    ],
)  # fmt: skip
def test_old_spellings(line, name, value):
    assert explicit_options(parser_of("train"), line.split()) == {name: value}


RECOMMENDED = {"epochs": 7, "imgsz": 224}


def resolved(*line):
    parser = parser_of("train")
    return resolve_training(parser, explicit_options(parser, line), RECOMMENDED, Path("d.yaml"))


def test_command_line_overrides_recommendation():
    settings, origin = resolved("--epochs", "3")
    assert (settings.epochs, settings.imgsz, settings.batch_size) == (3, (224,), 16)
    assert (origin["epochs"], origin["imgsz"], origin["batch_size"]) == ("command line", "d.yaml", "default")
    text = format_origins(settings, origin)
    assert "from command line: epochs=3" in text and "from d.yaml: imgsz=[224]" in text


def test_recommendation_ignored_when_a_model_is_chosen():
    settings, _ = resolved("--weights", "x.pt")
    assert (settings.epochs, settings.imgsz) == (100, (640,))
    settings, _ = resolved("--weights", " ")
    assert (settings.weights, settings.epochs) == ("", 7)


def test_unknown_recommendation():
    parser = parser_of("train")
    with pytest.raises(UserError, match=r"d\.yaml.*epoch_count"):
        resolve_training(parser, {}, {"epoch_count": 3}, Path("d.yaml"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--batch-size 0", "batch"), ("--epochs 0", "epochs"), ("--imgsz 8", "imgsz"), ("--imgsz 1 2 3", "imgsz"),
        ("--multi-scale 320 20", "multi-scale"), ("--resize-rate 0", "resize-rate"),
        ("--val-interval 0", "val-interval"),
        ("--save-keep -1", "save-keep"), ("--val-start 0", "val-start"),
        ("--workers -2", "workers"), ("--label-smoothing 1", "label-smoothing"), ("--quad --batch-size 6", "quad"),
    ],
)  # fmt: skip
def test_values_out_of_range(line, says):
    with pytest.raises(UserError, match=says):
        resolved(*line.split())
