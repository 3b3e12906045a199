"""Run training steps and write their losses as JSON; started by test_ddp.py, also under torchrun."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.argv, arguments = sys.argv[:1], sys.argv[1:]


def main(out: Path, data: str, steps: int, freeze_bn: bool, name: str) -> None:
    """Train the smallest network of a task for `steps` batches of 8 and write `out` on the first rank.

    `name` is the task, followed by `+psp` or another design for an additional semantic head, or by `:` and a model.
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
        device="cpu", amp="fp32", freeze_bn=freeze_bn, project=str(out.parent / "runs"), name=out.stem,
        noautoanchor=True, noplots=True, seed=1,
    )  # fmt: skip
    run = build_run(partial(select_task, task), settings)
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
    gathered = dist.gather(norm)
    if dist.is_main():
        out.write_text(json.dumps({"losses": losses, "norms": gathered}))
    dist.stop()


if __name__ == "__main__":
    main(Path(arguments[0]), arguments[1], int(arguments[2]), arguments[3] == "frozen", arguments[4])
