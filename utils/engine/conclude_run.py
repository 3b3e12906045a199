"""Conclusion of a training run: evaluate the best checkpoint, write results and plots, strip the checkpoints.

Stripping `last.pt` is the last step. Until then the run can be resumed, and the conclusion starts again.
"""

from __future__ import annotations

from dataclasses import replace

from models.checkpoint import load_checkpoint
from models.fuse import fuse
from models.network import Network
from models.network_runner import NetworkRunner, scoring_runner
from utils.core import distributed as dist
from utils.core.log import LOGGER
from utils.engine.evaluate import MANY_CLASSES, Report, evaluate, log_report
from utils.engine.run import Run
from utils.engine.run_checkpoints import strip_checkpoints
from utils.engine.run_outputs import BatchPlotter, write_results


def conclude(run: Run) -> dict[str, float]:
    """Finish a run after its last epoch; return the metrics of the best checkpoint. All ranks must call this."""
    dist.barrier()  # the first rank has written the file
    LOGGER.info(f"evaluating {run.weights_folder / 'best.pt'}")
    plotter = BatchPlotter(run.task, run.folder, run.data, enabled=not run.settings.noplots)
    network = _load_best(run)
    report = _evaluate(run, network, plotter)
    report = replace(report, metrics=report.metrics | _end_to_end_metrics(run, network))
    dist.barrier()  # all ranks have read the file before it is rewritten
    if dist.is_main():
        _write_outputs(run, report, plotter)
        strip_checkpoints(run.weights_folder)
        run.loggers.finish(report.metrics, [run.weights_folder / "best.pt", run.weights_folder / "last.pt"])
        LOGGER.info(f"done; results are in {run.folder}")
    return report.metrics


def _end_to_end_metrics(run: Run, network: Network) -> dict[str, float]:
    """Evaluate the duplicate filter, if there is one; the names of the metrics end in `_end_to_end`."""
    if all(getattr(head, "duplicate_filter", None) is None for head in network.heads.values()):
        return {}
    network.use_end_to_end()
    heads = [name for name, spec in network.specs.items() if not spec.end_to_end]
    runner = _runner(run, network)
    report = evaluate(runner, run.val_loader, run.eval_settings(), run.device, skip_heads=tuple(heads))
    metrics = {f"{name}_end_to_end": value for name, value in report.metrics.items() if not name.startswith("val/")}
    scores = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "/map50" in name)
    LOGGER.info(f"duplicate filter, without NMS: {scores}")
    return metrics


def _load_best(run: Run) -> Network:
    """Load `best.pt` with weights rounded to half precision like those of the stripped file."""
    checkpoint = load_checkpoint(run.weights_folder / "best.pt")
    return fuse(checkpoint.network.half().float().eval().to(run.device))


def _runner(run: Run, network: Network) -> NetworkRunner:
    """Wrap the folded network: in fp32 on a CPU, with the training's precision on a GPU."""
    return scoring_runner(network, run.device, run.mixed if run.device.type == "cuda" else None)


def _evaluate(run: Run, network: Network, plotter: BatchPlotter) -> Report:
    runner = _runner(run, network)
    with run.phase("validation"):
        report = evaluate(runner, run.val_loader, run.eval_settings(), run.device, run.losses, on_batch=plotter)
    image_size = run.settings.imgsz[-1]
    log_report(report, (1, 3, image_size, image_size), run.settings.verbose or run.data.num_classes < MANY_CLASSES)
    return report


def _write_outputs(run: Run, report: Report, plotter: BatchPlotter) -> None:
    """Write results.json and the plots."""
    write_results(run.folder / "results.json", report, {"epochs": run.state.epoch, "checkpoint": "best.pt"})
    if not run.settings.noplots:
        for path in (*plotter.paths, *run.task.draw_scores(report.scores, run.folder, run.data)):
            run.loggers.image(path, run.state.epoch)
