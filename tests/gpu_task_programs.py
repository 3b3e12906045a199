"""Run programs one after the other on the simulated GPU; write what each did as JSON.

    python tests/simulated_gpu.py tests/gpu_task_programs.py REPORT.json PROGRAMS.json

PROGRAMS.json lists objects with `line`, the words of a command line that begins with a script, and `results`, a file
to read afterwards. One process for all of them saves the start of torch. The report has, for each, the operators that
mixed devices, its launches and optimizer steps, the costs of its validation batches, and the text of the file.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_step_counts import difference, snapshot
from simulated_gpu import RECORD
from torch.optim.optimizer import register_optimizer_step_post_hook

from utils.engine import evaluate


def run(line: list[str]) -> None:
    """Run a program as if it were started by its command line."""
    sys.argv = line
    try:
        runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    """Run the programs and write the report."""
    report, programs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    batches: list[dict[str, Any]] = []
    progress = evaluate.progress

    def counted(loader: Iterable[Any], **settings: Any) -> Iterator[Any]:
        for batch in progress(loader, **settings):
            before = snapshot()
            yield batch
            batches.append({"images": len(batch), **difference(snapshot(), before)})

    evaluate.progress = counted  # type: ignore[assignment]
    updates: list[int] = []
    register_optimizer_step_post_hook(lambda *_: updates.append(1))
    found = []
    for program in programs:
        RECORD.reset()
        updates.clear()
        batches.clear()
        run(program["line"])
        file = Path(program["results"])
        found.append(
            {
                "mixed": dict(RECORD.mixed),
                "launches": RECORD.launches,
                "updates": len(updates),
                "batches": list(batches),
                "results": file.read_text() if file.exists() else "",
            }
        )
    report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
