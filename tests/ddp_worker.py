"""Run training steps and write their losses as JSON; started by test_ddp.py, also under torchrun."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

NOMINAL_BATCHES = {"every": 8.0, "accumulate": 16.0}
sys.argv, arguments = sys.argv[:1], sys.argv[1:]


def buffer_norm(network: torch.nn.Module) -> float:
    """Compute the norm of all floating-point buffers."""
    return sum(float(b.double().square().sum()) for b in network.buffers() if b.is_floating_point()) ** 0.5


def main(out: Path, data: str, steps: int, mode: str, name: str) -> None:
    """Train the smallest network of a task for `steps` batches of 8 and write `out` on the first rank.

    `mode` is frozen (BatchNorm), live, every (frozen, with an update after every batch) or accumulate (after every
    second batch). `name` is the task, followed by `+psp` or another design for an additional semantic head, or by `:`
    and a model.
    """
    from utils.core import distributed as dist
    from utils.core.train_settings import TrainSettings
    from utils.engine.fit import build_run
    from utils.engine.train_epoch import forward_backward, set_train_mode, update_weights
    from utils.tasks.task_selection import select_task

    name, _, cfg = name.partition(":")
    task, _, design = name.partition("+")
    settings = TrainSettings(
        data=data, semantic=design, cfg=cfg or select_task(task, ()).cfg, imgsz=(64,), batch_size=8, workers=0,
        device="cpu", amp="fp32", freeze_bn=mode != "live", project=str(out.parent / "runs"), name=out.stem,
        noautoanchor=True, noplots=True, seed=1,
    )  # fmt: skip
    run = build_run(partial(select_task, task), settings)
    if mode in NOMINAL_BATCHES:
        run.schedule = replace(
            run.schedule, hyp=replace(run.hyp, warmup_epochs=0.0, nominal_batch=NOMINAL_BATCHES[mode])
        )
    reductions: list[int] = []
    if dist.world_size() > 1:

        def count_and_reduce(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            reductions.append(bucket.index())
            return allreduce_hook(None, bucket)

        run.model.register_comm_hook(None, count_and_reduce)
    losses: list[float] = []
    while len(losses) < steps:
        set_train_mode(run.model, run.settings.freeze_bn)
        for batch in run.train_loader.epoch(run.state.epoch):
            run.schedule.apply(run.optimizer, run.state.epoch, run.state.global_step)
            terms = torch.stack([term.detach() for term in forward_backward(run, batch).values()])
            losses.append(float(dist.sum_over_ranks(terms).sum()))
            update_weights(run, batch)
            run.state.global_step += 1
            if len(losses) == steps:
                break
        run.state.epoch += 1
    norm = sum(float(p.detach().double().square().sum()) for p in run.network.parameters()) ** 0.5
    own = dist.gather(buffer_norm(run.network))
    run.ema.broadcast()
    average = dist.gather(buffer_norm(run.ema.network))
    gathered = dist.gather(norm)
    if dist.is_main():
        found = {"losses": losses, "norms": gathered, "reductions": len(reductions), "own": own, "average": average}
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    from utils.core.cli import run_script

    run_script(partial(main, Path(arguments[0]), arguments[1], int(arguments[2]), arguments[3], arguments[4]))
