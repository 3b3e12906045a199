"""Post-processing of the detect head: suppression, then pixels of the original."""

import pytest
import torch

from utils.core.contracts import EvalSettings, Geometry, HeadSpec, ImageInfo, Results
from utils.postprocess import POSTPROCESS


def test_results_in_original_pixels():
    process = POSTPROCESS.get("detect")(HeadSpec("detect", 2), EvalSettings(confidence=0.25, max_candidates=1))
    geometry = Geometry((720, 1280), (384, 640), (0.5, 0.5), (0.0, 12.0))
    results = [Results(ImageInfo(index, f"{index}.jpg", geometry)) for index in range(2)]
    predictions = torch.zeros(2, 3, 7)
    predictions[0, 0] = torch.tensor([155.0, 195.0, 290.0, 350.0, 0.9, 0.1, 0.8])
    predictions[1, 0] = torch.tensor([10.0, 20.0, 40.0, 40.0, 0.9, 0.8, 0.9])  # out of the image; two classes
    process({"predictions": predictions}, results)
    first, second = results
    assert first.boxes.tolist() == [[20, 16, 600, 716]]
    assert first.scores.tolist() == pytest.approx([0.72])
    assert first.classes.tolist() == [1]
    assert first.classes.dtype == torch.int64
    assert not first.candidates_cut
    assert second.boxes.tolist() == [[0, 0, 60, 56]]
    assert second.classes.tolist() == [1]
    assert second.candidates_cut


def test_results_per_image_required():
    process = POSTPROCESS.get("detect")(HeadSpec("detect", 2), EvalSettings())
    with pytest.raises(ValueError, match="1 results"):
        process({"predictions": torch.zeros(2, 3, 7)}, [Results(ImageInfo(0, "0.jpg", Geometry((1, 1), (1, 1))))])
