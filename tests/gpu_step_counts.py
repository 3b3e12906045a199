"""Train on the simulated GPU and write what one steady training step and one validation batch cost, as JSON.

    python tests/simulated_gpu.py tests/gpu_step_counts.py REPORT.json SCRIPT [options of the script]

Started by tests/test_gpu.py. A step is everything between two optimizer steps; the last one of the epoch is reported, so
that first-time costs are left out.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from simulated_gpu import RECORD
from torch.optim.optimizer import register_optimizer_step_post_hook


def snapshot() -> dict[str, Any]:
    """Return the record so far."""
    return {"launches": RECORD.launches, "waits": dict(RECORD.waits)}


def difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return what happened between two snapshots."""
    waits = {place: count - before["waits"].get(place, 0) for place, count in after["waits"].items()}
    return {
        "launches": after["launches"] - before["launches"],
        "waits": {place: count for place, count in waits.items() if count},
    }


def main() -> None:
    """Run the script named on the command line and write the counts."""
    report, script, options = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    steps: list[dict[str, Any]] = []
    register_optimizer_step_post_hook(lambda *_: steps.append(snapshot()))
    sys.argv = [script, *options]
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    parser = module.build_parser()
    numbers = module.run(**vars(parser.parse_args(options)))
    counts = [difference(after, before) for before, after in zip(steps, steps[1:], strict=False)]
    report.write_text(json.dumps({"steps": counts, "numbers": numbers}), encoding="utf-8")


if __name__ == "__main__":
    main()
