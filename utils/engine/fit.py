"""Train a network: build the run, train and validate each epoch, evaluate the best checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

import torch

from models.checkpoint import Checkpoint
from models.network import Network
from utils.core import distributed as dist
from utils.core.contracts import Batch, Logger, Results, SelectTask, Task
from utils.core.device import autocast_dtype, configure_gpu, describe, select_device, varying_sizes
from utils.core.errors import UserError
from utils.core.files import remove_if_empty
from utils.core.interrupt import Interrupt, StopSignal
from utils.core.log import LOGGER
from utils.core.seed import seed_everything
from utils.core.timing import Stopwatch, duration
from utils.core.train_settings import TrainSettings
from utils.engine.batchnorm_counters import BatchNormCounters
from utils.engine.conclude_run import conclude
from utils.engine.ema import ModelEma
from utils.engine.evaluate import Report, evaluate, format_table
from utils.engine.gradient_guard import GradientGuard
from utils.engine.profiler import Profile, untimed
from utils.engine.progress_text import time_summary
from utils.engine.recipe import apply_recipe, close_mosaic
from utils.engine.run import Run
from utils.engine.run_checkpoints import remove_temporary_files, repair_run_folder, save_epoch_checkpoints, save_last
from utils.engine.run_lock import LOCK_FILE, RunLock
from utils.engine.run_outputs import BatchPlotter, csv_columns, start_outputs
from utils.engine.run_setup import (
    build_run_losses,
    build_run_optimizer,
    check_names,
    create_folder,
    fit_anchors,
    load_config,
    open_loaders,
    open_resumed,
    resolve_batch_size,
    wrap_model,
)
from utils.engine.run_state import restore
from utils.engine.step_schedule import StepSchedule
from utils.engine.train_epoch import RunInterruptedError, any_rank_interrupted, train_one_epoch
from utils.engine.trainable_network import (
    build_trainable_network,
    freeze_layers,
    has_folded_batchnorm,
    require_heads,
    round_image_sizes,
)
from utils.loggers import Loggers
from utils.metrics.average_precision import weighted_sum


def fit(select_task: SelectTask, settings: TrainSettings, loggers: Sequence[Logger] = ()) -> dict[str, float]:
    """Train until all epochs are done, early stopping ends the run, or the user interrupts it.

    At any time `weights/last.pt` in the folder of the run holds a state that `--resume` continues, up to the end of the
    evaluation of the best checkpoint.

    Args:
        select_task: Chooses the task from the names of the network's heads.
        settings: Options of the run.
        loggers: Loggers beside those of `--log`.

    Returns:
        Metrics of the best checkpoint by name.

    Raises:
        StopSignal: After an interrupted run has been saved.
    """
    lock = RunLock()
    try:
        run = build_run(select_task, settings, loggers, lock)
        try:
            start_outputs(run)
        except UserError:
            if dist.is_main():
                (run.folder / LOCK_FILE).unlink(missing_ok=True)
                remove_if_empty(run.folder)
            raise
        dist.set_advice(f"continue with --resume {run.weights_folder / 'last.pt'}")
        _train(run)
        return _conclude(run)
    finally:
        lock.release()


def _train(run: Run) -> None:
    """Train and validate the remaining epochs.

    Raises:
        StopSignal: After a run that got a signal has been saved.
        UserError: After a run that had to stop for another reason has been saved.
    """
    with Interrupt("stopping after this step; press Ctrl-C again to stop at once") as interrupt, Stopwatch() as watch:
        try:
            while not run.state.complete:
                metrics = train_one_epoch(run, interrupt, lambda: save_last(run))
                report = _validate(run, interrupt)
                _finish_epoch(run, metrics, report)
        except RunInterruptedError:
            run.loggers.finish({}, [])
            dist.barrier()  # the first rank has written the checkpoint
            advice = f"continue with --resume {run.weights_folder / 'last.pt'}"
            if interrupt.reason:
                raise UserError(f"{interrupt.reason}; the run is saved, {advice}") from None
            LOGGER.info(f"saved; {advice}")
            raise StopSignal(interrupt.number or signal.SIGINT) from None
    LOGGER.info(f"{run.state.epoch} epochs in {duration(watch.seconds)}")


def _conclude(run: Run) -> dict[str, float]:
    try:
        return conclude(run)
    except KeyboardInterrupt:
        LOGGER.info(f"all epochs are saved; --resume {run.weights_folder / 'last.pt'} evaluates the best checkpoint")
        raise


def build_run(
    select_task: SelectTask, settings: TrainSettings, loggers: Sequence[Logger] = (), lock: RunLock | None = None
) -> Run:
    """Build all parts of the run that `settings` describe, and restore its state if it is resumed.

    The order matters: cheap checks first, random numbers are drawn after seeding, and the folder is created last so
    that a failed start leaves no files.
    """
    settings, checkpoint = open_resumed(settings)
    check_names(settings)
    device = select_device(settings.device)
    dist.start(device)
    if lock is not None and checkpoint is not None:
        lock.acquire(create_folder(settings, checkpoint))
        settings, checkpoint = open_resumed(settings)  # another process may have written it before the lock was free
    seed_everything(settings.seed + dist.rank())
    fixed = not (settings.multi_scale or settings.rect)
    configure_gpu(device, deterministic=settings.deterministic, fixed_sizes=fixed, tf32=not settings.no_tf32)
    hyp, data = load_config(settings, checkpoint)
    initial = select_task(())
    network = build_trainable_network(initial.for_data(initial, data), settings, hyp, data, checkpoint)
    task, settings = _prepare_network(network, select_task, settings, resumed=checkpoint is not None)
    task = task.for_data(task, data)
    mixed = autocast_dtype(device, settings.amp)
    settings, hyp = resolve_batch_size(settings, hyp, network, device, mixed)
    hyp = close_mosaic(settings, hyp)
    train_loader, val_loader = open_loaders(task, settings, hyp, data, network.stride, pin=device.type == "cuda")
    if checkpoint is None:
        settings, hyp = apply_recipe(settings, hyp, train_loader, network.specs)
        train_loader = train_loader.with_batch_size(int(settings.batch_size) // dist.world_size())
    if task.fit_anchors and checkpoint is None and not settings.noautoanchor:
        fit_anchors(network, train_loader, hyp, settings)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = ModelEma(network, hyp.ema_decay, hyp.ema_ramp)
    profile = Profile(device) if settings.profile and dist.is_main() else None
    model = wrap_model(network, settings, device)
    optimizer = build_run_optimizer(network, settings, hyp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=mixed is torch.float16)
    run = Run(
        task=task,
        settings=settings,
        hyp=hyp,
        data=data,
        device=device,
        mixed=mixed,
        network=network,
        model=model,
        ema=ema,
        losses=build_run_losses(network, settings, hyp, mixed, train_loader.num_batches),
        gains=task.gains(hyp),
        optimizer=optimizer,
        scaler=scaler,
        counters=BatchNormCounters(model, enabled=device.type == "cuda" and not settings.checkpointing),
        guard=GradientGuard(optimizer, scaler, device),
        schedule=StepSchedule.from_settings(settings, hyp, train_loader.num_batches),
        train_loader=train_loader,
        val_loader=val_loader,
        loggers=Loggers(("csv", *settings.log), [*loggers, *([profile] if profile else [])]),
        resumed=checkpoint is not None,
        phase=profile.phase if profile else untimed,
        folder=create_folder(settings, checkpoint),
    )
    if lock is not None and checkpoint is None:
        lock.acquire(run.folder)
    _resume(run, checkpoint)
    precision = "fp32" if mixed is None else str(mixed).removeprefix("torch.")
    LOGGER.info(f"{describe(device)}, {precision}, {dist.world_size()} process(es)")
    return run


def _prepare_network(
    network: Network, select_task: SelectTask, settings: TrainSettings, resumed: bool
) -> tuple[Task, TrainSettings]:
    """Select the task of the network, freeze its layers and adapt the settings to it."""
    task = select_task(network.heads)
    require_heads(task.name, set(task.heads), set(network.heads), settings.weights or settings.cfg)
    freeze_layers(network, settings.freeze)
    network.checkpointing = settings.checkpointing
    if not resumed and settings.weights and not settings.freeze_bn and has_folded_batchnorm(network):
        LOGGER.warning(f"{settings.weights}: BatchNorm is folded into the weights; continuing with --freeze-bn")
        settings = replace(settings, freeze_bn=True)
    return task, round_image_sizes(settings, network)


def _resume(run: Run, checkpoint: Checkpoint | None) -> None:
    if checkpoint is not None:
        restore(run, checkpoint)
        where = f"at epoch {run.state.epoch + 1}, batch {run.state.step + 1}"
        LOGGER.info(f"resuming {run.folder} {'after its last epoch' if run.state.complete else where}")
        if dist.is_main():
            repair_run_folder(run)
    elif dist.is_main():
        remove_temporary_files(run.folder)  # with --exist-ok


def _validate(run: Run, interrupt: Interrupt) -> Report | None:
    """Evaluate the EMA network; return None if this epoch is not validated."""
    run.ema.broadcast()
    epoch, settings = run.state.epoch, run.settings
    if not _is_validated(settings, epoch + 1):
        return None
    if any_rank_interrupted(interrupt, run.device):  # several processes cannot stop together later in the validation
        save_last(run)
        raise RunInterruptedError
    every = settings.picture_interval
    plots_wanted = every > 0 and (epoch + 1) % every == 0 and not settings.noplots
    plotter = BatchPlotter(run.task, run.folder / "pictures" / f"epoch{epoch}", run.data, enabled=plots_wanted)

    def on_batch(batch: Batch, results: list[Results]) -> None:
        if interrupt.requested and dist.world_size() == 1:
            save_last(run)
            raise RunInterruptedError
        plotter(batch, results)

    with run.phase("validation"), varying_sizes():
        report = evaluate(
            run.runner(),
            run.val_loader,
            run.eval_settings(),
            run.device,
            run.losses,
            on_batch=on_batch,
            skip_heads=run.skipped_heads(epoch),
        )
    for path in plotter.paths:
        run.loggers.image(path, epoch)
    return report


def _is_validated(settings: TrainSettings, epoch: int) -> bool:
    """Decide whether to validate after an epoch, counted from 1; the last one always is."""
    later = epoch - settings.val_start
    return epoch == settings.epochs or not (settings.noval or later < 0 or later % settings.val_interval)


def _finish_epoch(run: Run, metrics: dict[str, float], report: Report | None) -> None:
    """Log the epoch, decide whether it is the last one, and save its checkpoints."""
    state, settings = run.state, run.settings
    epoch, fitness = state.epoch, -1.0
    if report is not None:
        metrics = metrics | report.metrics
        fitness = weighted_sum(metrics, run.task.fitness)
        for head, scores in report.scores.items():
            LOGGER.info(format_table(scores, verbose=False))
            if head in run.task.heads and scores.per_class:
                state.class_scores = [scores.per_class.get(i, 0.0) for i in range(run.data.num_classes)]
    LOGGER.info(f"epoch {epoch + 1}/{settings.epochs} {time_summary(metrics)}")
    best = fitness > state.best_fitness or (report is not None and epoch == 0)
    if best:
        state.best_fitness, state.best_epoch = fitness, epoch
    state.epoch, state.step, state.loss_sums = epoch + 1, 0, {}
    # epochs without validation do not count against the patience
    stop = report is not None and 0 < settings.patience <= epoch - state.best_epoch
    if stop:
        LOGGER.info(f"no improvement in {settings.patience} epochs (best: epoch {state.best_epoch + 1}); stopping")
    row = {column: metrics.get(name, float("nan")) for column, name in csv_columns(run.task, run.losses).items()}
    if dist.is_main():
        run.loggers.epoch(epoch, row)
    if reason := run.loggers.stop_requested():
        LOGGER.info(f"stopping after epoch {epoch + 1}: {reason}")
        stop = True
    state.complete = stop or state.epoch >= settings.epochs
    with run.phase("checkpoint"):
        save_epoch_checkpoints(run, epoch, best, last=state.complete)
