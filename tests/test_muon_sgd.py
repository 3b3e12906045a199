"""SGD mixed with Muon: orthogonal updates, batching by shape, and its SGD part."""

import importlib

import pytest
import torch
from helpers_run import same, tiny_data, weights
from torch import nn

from utils.engine.optimizers.muon_sgd import MuonSgd, newton_schulz, orthogonalise


def test_singular_values_become_about_one():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(newton_schulz(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_batches_of_equal_shapes_match_single_matrices():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4, 3, 3), (36, 8), (8, 36), (5, 5), (64, 1, 3, 3), (8, 4, 3, 3)]
    updates = [torch.randn(shape, generator=generator) for shape in shapes]
    for together, update in zip(orthogonalise(updates), updates, strict=True):
        assert together.shape == update.shape
        torch.testing.assert_close(together, orthogonalise([update])[0], atol=1e-5, rtol=1e-4)
    # tall matrices are scaled by the root of rows / columns
    tall = orthogonalise([torch.randn(64, 4, generator=generator)])[0]
    assert float(torch.linalg.svdvals(tall).mean()) == pytest.approx(4.0, rel=0.3)


def test_without_muon_it_is_nesterov_sgd():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    pairs = [
        (ours, MuonSgd(ours.parameters(), lr=0.1, momentum=0.9, muon=0.0, sgd=1.0)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)),
    ]
    for step in range(3):
        for network, optimizer in pairs:
            optimizer.zero_grad()
            network(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_only_matrices_are_orthogonalised_and_decayed():
    weight, scale = nn.Parameter(torch.eye(2) * 4), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [weight], "role": "decay", "weight_decay": 0.5}, {"params": [scale], "role": "norm"}]
    optimizer = MuonSgd(groups, lr=0.1, momentum=0.0, sgd=0.0, muon=1.0)
    weight.grad, scale.grad = torch.eye(2), torch.ones(2, 2)
    optimizer.step()
    expected = 4 * (1 - 0.1 * 0.5) * torch.eye(2) - 0.1 * orthogonalise([torch.eye(2)])[0]
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(scale.detach(), torch.full((2, 2), 0.9))


def test_training_and_exact_resume(tmp_path):
    data = tiny_data(tmp_path, train=16, val=8, size=64)
    chosen = {"cfg": "yolov5n", "imgsz": [64], "batch_size": 8, "workers": 0, "epochs": 3, "noplots": True}
    program = importlib.import_module("train")
    program.run(data=str(data), project=str(tmp_path), name="run", optimizer="MuonSGD", save_period=1, **chosen)
    folder = tmp_path / "run" / "weights"
    whole = weights(folder / "last.pt")
    program.run(resume=str(folder / "epoch0.pt"), workers=0)
    assert same(weights(folder / "last.pt"), whole)
