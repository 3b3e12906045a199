"""Evaluate on the simulated GPU and write what every validation batch costs, as JSON.

    python tests/simulated_gpu.py tests/gpu_batch_counts.py REPORT.json SCRIPT [options of the script]

A batch is everything from its hand-over by the loader to that of the next one.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_step_counts import difference, snapshot

from utils.engine import evaluate


def main() -> None:
    """Run the script named on the command line and write the counts of its validation batches."""
    report, script, options = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    counts: list[dict[str, Any]] = []
    progress = evaluate.progress

    def counted(batches: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for batch in progress(batches, **settings):
            before = snapshot()
            yield batch
            counts.append({"images": len(batch), **difference(snapshot(), before)})

    evaluate.progress = counted  # type: ignore[assignment]
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        report.write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
