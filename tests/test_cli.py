"""Options: the exact list per script, the old spellings, and where values come from."""

import argparse
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from utils.core import log
from utils.core.cli import explicit_options
from utils.core.contracts import Scores
from utils.core.errors import UserError
from utils.core.files import format_bytes
from utils.core.train_options import format_origins, resolve_training
from utils.core.train_settings import TrainSettings
from utils.core.val_settings import ValSettings
from utils.engine.evaluate import format_coco, format_table
from utils.engine.progress_text import progress_header, progress_losses, progress_prefix
from utils.metrics.coco import COCO_NAMES
from utils.metrics.segment import COLUMNS as MASK_COLUMNS

ROOT = Path(__file__).resolve().parents[1]

OPTIONS = {
    "train": """
        --adam --allow-label-faults --amp --autobalance --backbone-warmup --base-size --batch-size --bbox_interval
        --bbox_iou_optim --cache --cache-images --cfg --checkpointing --compile --cos-lr --data --deterministic
        --distill --device --download --end-to-end --entity --epochs --eval_epoch_interval --eval_start_epoch --evolve
        --evolve-population --evolve_population --exist-ok --fitness --freeze --freeze-bn --help --hyp
        --image-weights --img --img-size --imgsz --label-smoothing --layer-decay --linear-lr --local-rank
        --local_rank --log --lr --lr-cycles --lr-epochs --lr-gamma --lr-power --lr_epochs --lr_gamma --lr_scheduler
        --mosaic-window --multi-scale --multi_tensor_optimizer --name --no-plots --no-save --no-tf32 --no-val
        --noautoanchor --noplots --nosave --notest --noval --optimizer --patience --picture-interval --profile
        --project --quad --recipe --rect --resize-rate --resize_rate --resume --resume-evolve --resume_evolve
        --save-keep --save-period --save-steps --save_ckpt_interval --save_ckpt_max_num --save_period --schedule
        --seed --seg-interval --seg-mode --seg-mosaic --seg-share --semantic --single-cls --slimming --sync-bn
        --val-interval --val-start --weights --workers""",
    "val": """
        --absent-as-zero --allow-label-faults --annotations --augment --base-size --batch-size --compile
        --conf-thres --data --device --dnn --download --end-to-end --exist-ok --half --help --img --img-size --imgsz
        --iou-thres --max-det --name --no-plots --no-tf32 --noplots --project --save-conf --save-hybrid --save-json
        --save-txt --seg-flip --seg-mode --seg-scales --seg-window --segdata --single-cls --task --verbose --weights
        --workers""",
}


def parser_of(script):
    return importlib.import_module(script).build_parser()


@pytest.mark.parametrize("script", OPTIONS)
def test_option_list(script):
    found = {o for action in parser_of(script)._actions for o in action.option_strings if o.startswith("--")}
    assert sorted(found) == sorted(OPTIONS[script].split())


def test_options_match_settings():
    of_searches = {"evolve", "evolve_population", "resume_evolve"}
    dests = {action.dest for action in parser_of("train")._actions} - {"help", "local_rank", "lr"} - of_searches
    switches_of_others = {"bbox_iou_optim", "multi_tensor_optimizer"}
    of_masks = {"mask_ratio", "no_overlap"}  # segment/train.py adds them
    of_classes = {"lr0", "decay", "dropout", "cutoff", "pretrained", "verbose"}  # classify/train.py has them
    found = {action.dest for action in parser_of("classify.train")._actions} - {"help", "local_rank", "lr", "model"}
    assert of_classes <= found <= dests | of_classes
    of_segmenters = {action.dest for action in parser_of("segment.train")._actions}
    assert of_segmenters - {"help", "local_rank", "lr"} == dests | of_masks | of_searches
    assert dests - switches_of_others | of_masks | of_classes | {"explicit"} == set(TrainSettings().to_dict())


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


def test_recommendation_ignored_when_a_model_is_chosen(monkeypatch):
    texts = []
    monkeypatch.setattr(log.LOGGER, "info", texts.append)
    settings, _ = resolved("--weights", "x.pt")
    assert (settings.epochs, settings.imgsz) == (100, (640,))
    assert len(texts) == 1 and "--weights is given, so the defaults of d.yaml are not used: " in texts[0]
    assert "imgsz=" in texts[0] and "epochs=7" in texts[0]
    resolved("--weights", "x.pt", "--epochs", "3")
    assert "epochs" not in texts[1]
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


PROGRAMS = [
    "train", "val", "detect", "export", "benchmark", "serve", "tune", "prune", "check", "segment.train",
    "segment.val", "segment.predict", "classify.train", "classify.val", "classify.predict",
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_titled_groups_and_fits_80_columns(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = parser_of(program)
    general = next(group for group in parser._action_groups if group.title in ("options", "optional arguments"))
    shown = {action.dest for action in general._group_actions if action.help != argparse.SUPPRESS}
    assert shown == {"help"}, "every option belongs to a titled group"
    text = parser.format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.splitlines()[0].endswith("[options]")
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[1].split()[0].rstrip(":") in {"model", "data"}, titles  # the common ones first


def test_help_loads_no_numeric_package():
    code = (
        "import sys, train, val, detect, export, check; [one.build_parser().format_help() for one in "
        "(train, val, detect, export, check)]; "
        "print([name for name in ('torch', 'numpy', 'cv2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("program", "new"),
    [("test.py", "val.py"), ("test_custom.py", "val.py"), ("eval.py", "val.py"), ("train_custom.py", "train.py"),
     ("utils/flask_rest_api/restapi.py", "serve.py")],
)  # fmt: skip
def test_old_programs_name_the_new_one(program, new):
    line = [sys.executable, program, "--weights", "a b.pt"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (text,) = done.stderr.splitlines()
    assert f"python {new}" in text and "docs/coming-from-yolov5.md" in text
    assert ("--weights 'a b.pt'" in text) == (new != "serve.py")


def test_old_doors_open():
    for line, expected in (
        (["benchmarks.py", "--help"], "--hard-fail"),
        (["models/yolo.py", "--cfg", "yolov5n.yaml"], "YOLOv5n summary: "),
    ):
        done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True, check=True)
        assert expected in done.stdout
    done = subprocess.run(["bash", "data/scripts/get_coco.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "check.py --data coco.yaml --download" in done.stderr


def test_lr_names_the_hyperparameter():
    with pytest.raises(UserError, match=r"lr0: 0\.01"):
        parser_of("train").parse_args(["--lr", "0.01"])


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("terms", [3, 4])
def test_training_bar_shows_rate_and_remaining_time(columns, terms, monkeypatch):
    monkeypatch.setattr(log, "terminal_columns", lambda: columns)
    names = [f"detect/{name}" for name in ("box", "obj", "cls", "seg")][:terms]
    state = SimpleNamespace(epoch=99, step=20, loss_sums={})
    batch = SimpleNamespace(instances=120, images=torch.zeros(1, 3, 64, 640))
    cpu = torch.device("cpu")
    text = progress_prefix(state, 300, cpu) + progress_losses(state, names, torch.ones(terms), batch)
    assert len(text) == len(progress_header(names))
    bar = tqdm(total=1250, bar_format=log.bar_format(len(text)), ncols=columns, file=io.StringIO(), unit="batch")
    bar.update(620)
    bar.set_description_str(text)
    line = bar.format_meter(620, 1250, 130.0, ncols=columns, prefix=text, unit="batch", bar_format=bar.bar_format)
    bar.close()
    assert len(line) <= columns and "02:12" in line and "batch/s" in line


def test_colour_only_on_terminals(monkeypatch):
    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert log.coloured("error:", "31", terminal) == "\033[31merror:\033[0m"
    assert log.coloured("error:", "31", pipe) == "error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert log.coloured("error:", "31", terminal) == "error:"


def test_tables_fit_80_columns():
    row = dict.fromkeys(MASK_COLUMNS, 0.98765) | {"Images": 5000, "Instances": 36335}
    scores = Scores({}, columns=MASK_COLUMNS, rows=[("a class with a very long name", row)], per_class={})
    lines = format_table(scores, verbose=True).splitlines()
    assert {len(line) for line in lines} == {80} and lines[2].split()[-2:] == ["0.988", "0.988"]
    text = format_coco({f"coco/{name}": 0.5678 for name in COCO_NAMES})
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{name} 0.568" in text for name in COCO_NAMES)  # a name and its number stay together


def test_programs_end_without_collecting_garbage():
    """The interpreter's last collections would visit every object, a second with torch."""
    code = (
        "import atexit, gc; from utils.core.cli import run_script; "
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000)); run_script(lambda: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="calls glibc")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_processes_of_a_group_end_without_finalization(processes):
    """Threads of the communication library can abort there, and torchrun then reports a complete training as failed."""
    code = (
        "import atexit, ctypes; from utils.core.cli import run_script\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.__cxa_atexit(libc._exit, ctypes.c_void_p(6), None)  # the end of a finalized interpreter\n"
        "run_script(lambda: atexit.register(print, 'exit functions are called'))"
    )
    env = os.environ | {"WORLD_SIZE": processes, "RANK": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "exit functions are called\n"
    assert done.returncode == (6 if processes == "1" else 0)


def test_numbers_of_a_table_do_not_touch():
    row = dict.fromkeys(MASK_COLUMNS, 0.00597) | {"Images": 128, "Instances": 464}
    row |= dict(zip(MASK_COLUMNS[2:], (0.04551, 1.23e-5, 1.0, 0.0), strict=False))
    scores = Scores({}, columns=MASK_COLUMNS, rows=[("all", row)], per_class={})
    words = format_table(scores, verbose=False).splitlines()[-1].split()
    assert words == ["all", "128", "464", "0.046", "0.000", "1", "0", "0.006", "0.006", "0.006", "0.006"]


def test_small_sizes_are_in_megabytes():
    assert (format_bytes(12_300_000), format_bytes(2.5e9)) == ("12.3 MB", "2.5 GB")
