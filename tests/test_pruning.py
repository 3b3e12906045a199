"""Pruned networks of every kind: equal outputs, checkpoints, and further use."""

import numpy as np
import pytest
import torch

from models.add_semantic_head import with_semantic_head
from models.builder import build_network, classification_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse
from models.summary import count_operations
from tools.pruning.apply import without_channels
from tools.pruning.channel_groups import Group, Slice, find_coupling
from tools.pruning.channel_selection import Costs, Limits, choose, removed_channels
from tools.pruning.importance import TaylorImportance, by_batchnorm, by_weights
from tools.pruning.weight_sparsity import sparsify, zero_fraction
from utils.core.errors import UserError

pytest.importorskip("torch_pruning", reason="pruning needs torch-pruning")

SIZE = (64, 64)


def network_of(name, seed=0, **more):
    torch.manual_seed(seed)
    network = build_network(read_architecture(name), **more).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after training
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
    return network


def prune(network, share=0.7, scores=None, **limits):
    coupling = find_coupling(network)
    scores = by_weights(network, coupling.groups, 2) if scores is None else scores
    costs = Costs(network, SIZE)
    chosen = choose(costs, coupling.groups, scores, Limits(**limits), lambda left: left <= share)
    return without_channels(network, removed_channels(coupling.groups, chosen), coupling.fixed)


@pytest.fixture(scope="module")
def pruned():
    return prune(network_of("yolov5n"))


KINDS = (
    "yolov5n", "yolov5n-seg", "yolov5n-cls", "yolov5n-psp", "yolov5n-lab", "yolov5n-bise", "yolov5n-base",
    "polyolo-n-seg", "yolov5s-ghost", "yolov5s-transformer", "yolov5s-bifpn", "yolov5n-v5", "yolov3-tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_pruned_network_matches_masked_network(name):
    network = network_of(name, num_classes=3)
    smaller = prune(network)  # without_channels compares it with the masked network
    assert count_operations(smaller, SIZE) <= 0.72 * count_operations(network, SIZE)
    before, after = (net(torch.zeros(1, 3, *SIZE)) for net in (network, smaller))
    shapes = [{h: {n: t.shape for n, t in raw.items()} for h, raw in found.items()} for found in (before, after)]
    assert shapes[0] == shapes[1] and smaller.specs == network.specs


def test_verification_detects_wrong_channels():
    network = network_of("yolov5n")
    wrong = {("model.0.conv", "out"): np.arange(8), ("model.0.bn", "out"): np.arange(8)}
    wrong["model.1.conv", "in"] = np.arange(8, 16)
    with pytest.raises(UserError, match="cannot be pruned"):
        without_channels(network, wrong, frozenset())
    del wrong["model.1.conv", "in"]
    with pytest.raises(UserError, match="cannot be pruned"):
        without_channels(network, wrong, frozenset())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pruned_checkpoint_round_trip(pruned, tmp_path, suffix):
    path = tmp_path / f"pruned{suffix}"
    save_checkpoint(path, pruned, {"task": "detect"})
    if suffix == ".pt":
        assert torch.load(path, weights_only=True)["architecture"]["widths"]["1"]["out"] < 32
    again = load_checkpoint(path).network
    image = torch.rand(1, 3, *SIZE)
    for level, values in pruned(image)["detect"].items():
        assert torch.equal(again(image)["detect"][level], values)


def test_pruned_network_fuse_train_and_classes(pruned, tmp_path):
    image = torch.rand(2, 3, *SIZE)
    folded = fuse(pruned)
    assert torch.allclose(folded(image)["detect"]["level0"], pruned(image)["detect"]["level0"], atol=1e-4)
    path = tmp_path / "folded.pt"
    save_checkpoint(path, folded, {})
    assert torch.equal(load_checkpoint(path).network(image)["detect"]["level0"], folded(image)["detect"]["level0"])
    other = build_network(pruned.architecture, 2, ["a", "b"])
    other.train()(image)["detect"]["level0"].sum().backward()
    assert other.specs["detect"].num_classes == 2
    assert all(p.grad is not None for n, p in other.named_parameters() if n.startswith("model.0"))


def test_prune_twice(pruned):
    once = count_operations(pruned, SIZE)
    twice = prune(pruned, 0.8, max_fraction=0.6)
    assert count_operations(twice, SIZE) <= 0.82 * once
    assert twice.architecture["name"] == "yolov5n-pruned"


def test_pruned_detector_to_other_tasks(pruned):
    classifier = classification_network(pruned, 4)
    for key, tensor in classifier.state_dict().items():
        if not key.startswith("model.9."):
            assert torch.equal(tensor, pruned.state_dict()[key])
    assert classifier(torch.rand(1, 3, *SIZE))["classify"]["logits"].shape == (1, 4)
    for alone in (False, True):
        both = build_network(with_semantic_head(pruned.architecture, "psp", 5, alone=alone))
        assert both.eval()(torch.rand(1, 3, *SIZE))["semantic"]["logits"].shape[1] == 5
    replaced = with_semantic_head(
        prune(build_network(with_semantic_head("yolov5n", "base", 3)).eval()).architecture, "psp", 4
    )
    assert build_network(replaced).eval()(torch.rand(1, 3, *SIZE))["semantic"]["logits"].shape[1] == 4


WRONG = [
    ({"1": {"modules": {"no.such": {"out_channels": 8}}}}, "row 1 .Conv.*no.such"),
    ({"1": {"modules": {"conv": {"kernel_size": 8}}}}, "kernel_size"),
    ({"1": {"modules": {"conv": {"out_channels": -3}}}}, "out_channels"),
    ({"1": {"modules": {"conv": {"out_channels": 10**9}}}}, "out_channels"),
    ({"1": {"modules": {"conv": {"groups": 5}}}}, "groups"),
    ({"one": {"out": 4}}, "row one"), ({"1": 4}, "row 1"), ([], "widths"), ({"1": {"modules": {"conv": 4}}}, "row 1"),
    ({"1": {"modules": {"conv": {"out_channels": 8}}}}, "row 1"),
]  # fmt: skip


@pytest.mark.parametrize(("widths", "says"), WRONG)
def test_invalid_widths(widths, says):
    with pytest.raises(UserError, match=says):
        build_network({**read_architecture("yolov5n"), "widths": widths})


def test_widths_in_yaml():
    text = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [-1, 1, Classify, [nc]]
widths:
  0: {out: 6, modules: {conv: {out_channels: 6}, bn: {num_features: 6}}}
"""
    network = build_network(read_architecture(text))
    assert network.model[0].conv.weight.shape == (6, 3, 3, 3) and network.model[1].conv.conv.in_channels == 6


def test_pruning_order():
    network = build_network(read_architecture("yolov5n")).eval()
    groups = find_coupling(network).groups
    scores = [torch.arange(group.channels, dtype=torch.float32) + 1 for group in groups]
    scores[7] *= 1e-6
    chosen = choose(Costs(network, SIZE), groups, scores, Limits(max_fraction=0.5), lambda left: left <= 0.99)
    assert len(chosen[7]) and set(chosen[7]) == set(range(len(chosen[7])))  # the least important of it
    even = choose(
        Costs(network, SIZE), groups, scores, Limits(max_fraction=0.5, uniform=True, step=4), lambda left: left <= 0.8
    )
    shares = [len(gone) / group.channels for gone, group in zip(even, groups, strict=True)]
    assert max(shares) - min(shares) <= 0.25
    assert all((group.channels - len(gone)) % 4 == 0 for gone, group in zip(even, groups, strict=True))


def test_unreachable_target():
    network = build_network(read_architecture("yolov5n")).eval()
    with pytest.raises(UserError, match="--max-cut"):
        prune(network, 0.3, max_fraction=0.2)


def test_published_flops():
    for name in ("yolov5n", "yolov5n-seg", "yolov5s-ghost", "yolov5n-cls"):
        network = build_network(read_architecture(name))
        assert Costs(network, (128, 128)).total == pytest.approx(count_operations(network, (128, 128)), rel=0.01)


def test_dead_channels_are_least_important():
    network = network_of("yolov5n-cls", num_classes=2)
    groups = find_coupling(network).groups
    dead, part = next(
        (index, part) for index, group in enumerate(groups) for part in group.slices
        if (part.module, part.side) == ("model.1.conv", "out")
    )  # fmt: skip
    channel = int(part.owners[part.places == 5][0])
    with torch.no_grad():
        network.model[1].bn.weight[5] = network.model[1].bn.bias[5] = 0
        network.model[1].conv.weight[5] = 0
        network.model[2].cv1.conv.weight[:, 5] = network.model[2].cv2.conv.weight[:, 5] = 0
    taylor = TaylorImportance(network, groups)
    network.requires_grad_(True)(torch.rand(2, 3, *SIZE))["classify"]["logits"].square().sum().backward()
    taylor.add()
    for scores in (taylor.scores(), by_weights(network, groups, 1), by_weights(network, groups, 2),
                   by_batchnorm(network, groups)):  # fmt: skip
        assert int(scores[dead].argmin()) == channel and all(torch.isfinite(one).all() for one in scores)


def test_taylor_importance():
    """For a loss that is linear in a channel, the first-order change is exact."""
    network = network_of("yolov5n-cls", num_classes=2)
    group = Group(16, (Slice("model.0.bn", "out", np.arange(16), np.arange(16)),))
    taylor = TaylorImportance(network, [group])
    caught = {}
    hook = network.model[0].bn.register_forward_hook(lambda _, __, output: caught.update(map=output))
    network.requires_grad_(True)(torch.rand(1, 3, *SIZE))
    hook.remove()
    caught["map"].sum().backward()
    taylor.add()
    wanted = caught["map"].detach().sum((0, 2, 3)) ** 2
    assert torch.allclose(taylor.scores()[0], wanted, rtol=1e-3)


def test_sparsity_zeroes_smallest_weights():
    network = network_of("yolov5n")
    sparse = sparsify(network, 0.3)
    assert zero_fraction(network) < 0.001 and zero_fraction(sparse) == pytest.approx(0.3, abs=0.001)
    for name, weight in network.named_parameters():
        if name.endswith("conv.weight"):
            new = dict(sparse.named_parameters())[name]
            gone = new == 0
            assert weight[gone].abs().max() <= weight[~gone].abs().min() and torch.equal(new[~gone], weight[~gone])
