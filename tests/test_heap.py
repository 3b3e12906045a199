"""Memory of the process during the evaluation of masks, which must not grow with the number of images."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.core.contracts import Batch, EvalSettings, Geometry, HeadSpec, ImageInfo, Outputs
from utils.engine.evaluate import evaluate

SIDE, BLOCK = 64, 24 * 2**20
SPEC = HeadSpec("segment", 1, (8,), (((4.0, 4.0),),), num_masks=2, names=("a",))


def resident() -> int:
    """Return the bytes of physical memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def held_after_freeing_a_block() -> int:
    """Free a block behind which a small one is kept; return how many bytes of it the process still holds."""
    kept = [np.ones(2**16, np.uint8)]
    before = resident()
    block = np.ones(BLOCK, np.uint8)
    kept.append(np.ones(2**16, np.uint8))
    del block
    return resident() - before - len(kept) * 2**16


def evaluated(held: list[int]) -> float:
    """Evaluate one image; return the mask mAP50, and in `held` what a freed block leaves behind meanwhile."""
    info = ImageInfo(0, "0.jpg", Geometry((SIDE, SIDE), (SIDE, SIDE)))
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    labels = torch.tensor([[0, 0, 0.5, 0.5, 0.5, 0.5]])
    batch = Batch(torch.zeros(1, 3, SIDE, SIDE), labels, [info], masks=masks)
    predictions = torch.tensor([[[32, 32, 32, 32, 0.9, 0.9, 1, 1]]])
    decoded = {"segment": {"predictions": predictions, "prototypes": torch.ones(1, 2, 16, 16)}}
    runner = SimpleNamespace(specs={"segment": SPEC}, run=lambda images: Outputs(decoded))
    loader = SimpleNamespace(heads=("segment",), num_batches=1, epoch=lambda number: iter([batch]))
    loader.parts = [loader]
    report = evaluate(
        runner, loader, EvalSettings(("a",)), torch.device("cpu"),
        on_batch=lambda batch, results: held.append(held_after_freeing_a_block()),
    )  # fmt: skip
    return report.metrics["segment/mask_map50"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_evaluation_of_masks_returns_large_blocks():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120, check=True)
    accuracy, during, after = (float(text) for text in done.stdout.split()[-3:])
    assert accuracy > 0.9 and during < BLOCK / 8
    assert after > BLOCK / 2  # training keeps its heap: mapping memory for every layer again would take longer


if __name__ == "__main__":  # a process of its own, whose heap is known
    np.empty(2**25 - 2**14, np.uint8)  # once a block of this size is freed, glibc takes smaller ones from the heap
    found: list[int] = []
    sys.stdout.write(f"{evaluated(found)} {found[0]} {held_after_freeing_a_block()}")
