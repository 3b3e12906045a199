"""Train on the simulated GPU and write what one steady training step and one validation batch cost, as JSON.

    python tests/simulated_gpu.py tests/gpu_step_counts.py REPORT.json SCRIPT [options of the script]

A step is everything between two optimizer steps of the run.
"""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from simulated_gpu import RECORD
from torch.optim.optimizer import register_optimizer_step_post_hook


def snapshot() -> dict[str, Any]:
    """Return the record so far."""
    return {"launches": RECORD.launches, "waits": dict(RECORD.waits)}


def difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Compute the difference of two snapshots."""
    waits = {place: count - before["waits"].get(place, 0) for place, count in after["waits"].items()}
    return {
        "launches": after["launches"] - before["launches"],
        "waits": {place: count for place, count in waits.items() if count},
    }


def main() -> None:
    """Run the script named on the command line and write the counts of its steps."""
    report, script, options = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    steps: list[dict[str, Any]] = []
    register_optimizer_step_post_hook(lambda *_: steps.append(snapshot()))
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        counts = [difference(after, before) for before, after in itertools.pairwise(steps)]
        report.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
