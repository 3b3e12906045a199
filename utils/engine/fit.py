"""The training story, top to bottom."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.checkpoint import load_checkpoint, save_checkpoint
from models.class_names import in_words
from models.fuse import fuse
from models.network_runner import NetworkRunner
from models.summary import summarize
from utils.core import distributed as dist
from utils.core.contracts import Batch, Logger, Results, Task
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, write_text
from utils.core.interrupt import Interrupt
from utils.core.log import LOGGER
from utils.core.timing import Stopwatch, duration
from utils.core.train_settings import TrainSettings
from utils.core.yaml_file import write_yaml
from utils.engine.build_run import assemble
from utils.engine.evaluate import MANY_CLASSES, Report, coco_line, evaluate, speed_line, table
from utils.engine.run import Run
from utils.engine.run_state import save, snapshot
from utils.engine.train_epoch import RunInterruptedError, bottleneck, header, train_one_epoch
from utils.metrics.average_precision import weighted_sum

DRAWN_BATCHES = 3  # of training and validation images


def fit(
    choose: Callable[[Collection[str]], Task], settings: TrainSettings, own_loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Train until the epochs are done, patience runs out or the user stops; return the final numbers.

    `choose` returns the task that trains a network with certain heads. `own_loggers` are told beside those in settings.

    Whatever happens, `weights/last.pt` in the run's folder continues the run with `--resume`.
    """
    run = assemble(choose, settings, own_loggers)
    try:
        _open(run)
    except UserError:
        if dist.is_main():
            remove_if_empty(run.folder)
        raise
    with Interrupt("stopping after this step; once more to stop at once") as interrupt, Stopwatch() as watch:
        try:
            for _ in range(run.state.epoch, run.settings.epochs):
                numbers = train_one_epoch(run, interrupt, lambda: _save_last(run))
                report = _validate(run, interrupt)
                if _finish_epoch(run, numbers, report):
                    break
        except RunInterruptedError:
            run.loggers.finish({}, [])
            LOGGER.info(f"saved; continue with --resume {run.folder / 'weights' / 'last.pt'}")
            raise KeyboardInterrupt from None
    LOGGER.info(f"{run.state.epoch} epochs in {duration(watch.seconds)}")
    return _conclude(run)


def _open(run: Run) -> None:
    """Write down what is run and show what it is run on."""
    if not dist.is_main():
        return
    run.loggers.start(run.folder, {**run.settings.to_dict(), **{f"hyp/{k}": v for k, v in run.hyp.to_dict().items()}})
    write_yaml(run.folder / "args.yaml", run.settings.to_dict())
    write_yaml(run.folder / "hyp.yaml", run.hyp.to_dict())
    LOGGER.info(str(summarize(run.network, run.settings.imgsz[0]).line))
    LOGGER.info(
        f"{run.train_loader.num_images} training and {run.val_loader.num_images} validation images, "
        f"{in_words(run.network.specs)}; results go to {run.folder}"
    )
    if not run.settings.noplots and not run.resumed:
        run.task.draw_labels(run.train_loader, run.folder, run.data)
        _draw_training_batches(run)
    LOGGER.info(header(run, _terms_of(run)))


def _terms_of(run: Run) -> list[str]:
    """Return the names of the loss terms, from the columns of results.csv."""
    prefix = "train/"
    return [number.removeprefix(prefix) for number in _columns(run).values() if number.startswith(prefix)]


def _columns(run: Run) -> dict[str, str]:
    """Return results.csv's columns by the names of the numbers: the task's, and loss terms that are switched on."""
    terms = [(head, term) for head, loss in run.losses.items() for term in getattr(loss, "extra_terms", ())]
    extra = {f"{part}/{term}_loss": f"{part}/{head}/{term}" for part in ("train", "val") for head, term in terms}
    return {**run.task.columns, **extra}


def _draw_training_batches(run: Run) -> None:
    for index, batch in enumerate(run.train_loader.epoch(0)):
        if index == DRAWN_BATCHES:
            break
        path = run.folder / f"train_batch{index}.jpg"
        run.task.draw_batch(batch, path, run.data, None)
        run.loggers.image(path, 0)


def _save_last(run: Run) -> None:
    """Write last.pt with everything that continuing needs."""
    training = snapshot(run)  # every rank: random states are gathered
    save(run, run.folder / "weights" / "last.pt", training=training)


def _validate(run: Run, interrupt: Interrupt) -> Report | None:
    """Score the averaged network, unless it is not wanted in this epoch."""
    run.ema.share()
    if not _is_scored(run.settings, run.state.epoch + 1):
        return None

    every, epoch = run.settings.picture_interval, run.state.epoch
    wanted = every > 0 and (epoch + 1) % every == 0 and not run.settings.noplots
    folder = run.folder / "pictures" / f"epoch{epoch}"
    pictures = BatchPictures(run.task, folder, run.data, enabled=wanted)

    def watch(batch: Batch, results: list[Results]) -> None:
        if interrupt.requested and dist.world_size() == 1:
            _save_last(run)
            raise RunInterruptedError
        pictures(batch, results)

    with run.phase("validation"):
        report = evaluate(
            run.runner(),
            run.val_loader,
            run.eval_settings(),
            run.device,
            run.losses,
            on_batch=watch,
            without=run.left_out(epoch),
        )
    for path in pictures.drawn:
        run.loggers.image(path, epoch)
    return report


def _is_scored(settings: TrainSettings, epoch: int) -> bool:
    """Tell whether the network is scored after an epoch, counted from 1: after the last one always."""
    later = epoch - settings.val_start
    return epoch == settings.epochs or not (settings.noval or later < 0 or later % settings.val_interval)


def _finish_epoch(run: Run, numbers: dict[str, float], report: Report | None) -> bool:
    """Log the epoch, keep the checkpoints, tell whether patience has run out."""
    state, settings = run.state, run.settings
    epoch, score = state.epoch, -1.0
    if report is not None:
        numbers = numbers | report.metrics
        score = weighted_sum(numbers, run.task.fitness)
        for head, scores in report.scores.items():
            LOGGER.info(table(scores, verbose=False))
            if head in run.task.heads and scores.per_class:
                state.class_scores = [scores.per_class.get(i, 0.0) for i in range(run.data.num_classes)]
    LOGGER.info(f"epoch {epoch + 1}/{settings.epochs} {bottleneck(numbers)}")
    best = score > state.best_fitness or (report is not None and epoch == 0)
    if best:
        state.best_fitness, state.best_epoch = score, epoch
    state.epoch, state.step, state.loss_sums = epoch + 1, 0, {}
    # epochs that nobody scored are no worse than the best one
    stop = report is not None and 0 < settings.patience <= epoch - state.best_epoch
    if stop:
        LOGGER.info(f"no better result in {settings.patience} epochs (best was epoch {state.best_epoch + 1}); stopping")
    row = {column: numbers.get(name, float("nan")) for column, name in _columns(run).items()}
    if dist.is_main():
        run.loggers.epoch(epoch, row)
    if reason := run.loggers.stop_requested():
        LOGGER.info(f"stopping after epoch {epoch + 1}: {reason}")
        stop = True
    with run.phase("checkpoint"):
        _keep(run, epoch, best, last=stop or state.epoch == settings.epochs)
    return stop


def _keep(run: Run, epoch: int, best: bool, last: bool) -> None:
    """Write the epoch's checkpoints: last.pt, best.pt if it is the best, epochN.pt every `save_period`."""
    weights, settings = run.folder / "weights", run.settings
    if settings.nosave and not last:
        return
    training = snapshot(run)
    written: list[tuple[str, dict[str, Any] | None]] = [("last.pt", training)]
    if best or (last and not (weights / "best.pt").exists()):
        written.append(("best.pt", None))
    if settings.save_period > 0 and epoch % settings.save_period == 0:
        written.append((f"epoch{epoch}.pt", training))
    for name, state in written:
        save(run, weights / name, training=state)
        run.loggers.checkpoint(weights / name, epoch, best)
    _drop_old(weights, settings)


def _drop_old(weights: Path, settings: TrainSettings) -> None:
    """Remove all but the newest of the checkpoints that `save_period` made, if their number is limited."""
    if settings.save_keep and dist.is_main():
        made = sorted((int(path.stem[5:]), path) for path in weights.glob("epoch*.pt") if path.stem[5:].isdigit())
        for _, path in made[: -settings.save_keep]:
            path.unlink(missing_ok=True)


def _conclude(run: Run) -> dict[str, float]:
    """Shrink the checkpoints to half-precision weights, score the best one, write the results."""
    dist.barrier()
    weights = run.folder / "weights"
    best = weights / "best.pt"
    checkpoint = load_checkpoint(best)
    dist.barrier()  # every rank has read it before the first one writes it again
    if dist.is_main():
        for path in (best, weights / "last.pt"):
            stored = load_checkpoint(path)
            save_checkpoint(path, stored.network, meta=stored.meta, training=None, half=True)
    network = fuse(checkpoint.network.half().float().eval().to(run.device))  # what the file holds
    LOGGER.info(f"scoring {best}")
    pictures = BatchPictures(run.task, run.folder, run.data, enabled=not run.settings.noplots)
    runner = NetworkRunner(network, run.device)
    with run.phase("validation"):
        report = evaluate(runner, run.val_loader, run.eval_settings(), run.device, run.losses, on_batch=pictures)
    for scores in report.scores.values():
        LOGGER.info(table(scores, verbose=run.settings.verbose or run.data.num_classes < MANY_CLASSES))
    if line := coco_line(report.metrics):
        LOGGER.info(line)
    LOGGER.info(speed_line(report, (1, 3, run.settings.imgsz[-1], run.settings.imgsz[-1])))
    if dist.is_main():
        write_results(run.folder / "results.json", report, {"epochs": run.state.epoch, "checkpoint": best.name})
        if not run.settings.noplots:
            for path in (*pictures.drawn, *run.task.draw_scores(report.scores, run.folder, run.data)):
                run.loggers.image(path, run.state.epoch)
        run.loggers.finish(report.metrics, [best, weights / "last.pt"])
        LOGGER.info(f"done; everything is in {run.folder}")
    return report.metrics


class BatchPictures:
    """Draw the first scored batches, with labels and with what was found; those with classes of pixels apart."""

    def __init__(self, task: Task, folder: Path, data: DataConfig, enabled: bool = True) -> None:
        self.task, self.folder, self.data, self.enabled = task, folder, data, enabled and dist.is_main()
        self.drawn: list[Path] = []
        self._counts: dict[str, int] = {}

    def __call__(self, batch: Batch, results: list[Results]) -> None:
        """Draw one batch, if few of its kind have been drawn."""
        prefix = "" if batch.semantic is None else "semantic_"
        index = self._counts.setdefault(prefix, 0)
        if not self.enabled or index >= DRAWN_BATCHES:
            return
        self._counts[prefix] += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, found in (("labels", None), ("pred", results)):
            path = self.folder / f"{prefix}val_batch{index}_{kind}.jpg"
            self.task.draw_batch(batch, path, self.data, found)
            self.drawn.append(path)


def write_results(path: Path, report: Report, about: Mapping[str, Any]) -> None:
    """Write the numbers of a scoring as JSON: metrics by name, speeds in milliseconds per image."""
    speeds = {f"speed/{name}_ms": round(value, 3) for name, value in report.milliseconds.items()}
    numbers = {name: None if value != value else value for name, value in report.metrics.items()}  # NaN is no JSON
    write_text(path, json.dumps({**about, "images": report.images, **numbers, **speeds}, indent=2) + "\n")
