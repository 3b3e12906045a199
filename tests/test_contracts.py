"""Every registry entry has the methods, signatures and attributes of the protocol that the registry is typed with."""

import inspect

import pytest
import torch
from torch import nn

from models.layer_plan import HEADS, LAYERS
from tools.converters import SOURCES, TARGETS
from tools.dataset_check import CHECKS
from utils.backends import BACKENDS
from utils.backends.flat_outputs import ExportBackend
from utils.core import contracts
from utils.core.contracts import (
    Backend,
    EvalSettings,
    Evaluator,
    Head,
    HeadSpec,
    Logger,
    Loss,
    PostProcess,
    Results,
    Runner,
    Sink,
    Task,
)
from utils.core.hyp import Hyp
from utils.core.registry import registered_names
from utils.datasets import GENERATORS, READERS, SEMANTIC_READERS
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions
from utils.engine.schedules import SCHEDULES, SchedulePoint
from utils.loggers import LOGGERS
from utils.losses import LOSSES
from utils.metrics import EVALUATORS
from utils.plots import classification_sinks, features, mask_sinks, prediction_sinks, semantic_sinks
from utils.postprocess import POSTPROCESS
from utils.tasks import TASKS

SPECS = {
    "detect": HeadSpec("detect", 3, (8, 16), (((10.0, 13.0),), ((30.0, 61.0),)), names=("a", "b", "c")),
    "segment": HeadSpec("segment", 3, (8, 16), (((10.0, 13.0),), ((30.0, 61.0),)), 4, ("a", "b", "c")),
    "dense": HeadSpec("detect", 3, (8, 16), names=("a", "b", "c"), loss="dense", bins=16),
    "dense_segment": HeadSpec("segment", 3, (8, 16), num_masks=4, names=("a", "b", "c"), loss="dense_segment", bins=16),
    "classify": HeadSpec("classify", 3, names=("a", "b", "c")),
    "semantic": HeadSpec("semantic", 3, names=("a", "b", "c")),
}


def entries(*registries):
    return [pytest.param(r.get(name), id=f"{r.kind}-{name}") for r in registries for name in r.names()]


def positional(function):
    """Return the parameters that a call by position may fill, and those of them without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    parameters = parameters[1:] if parameters and parameters[0].name == "self" else parameters
    return [p.name for p in parameters], [p.name for p in parameters if p.default is inspect.Parameter.empty]


def conforms(entry, protocol, skip=()):
    """Check that `entry` has each method of `protocol` and takes its arguments by position."""
    for name, wanted in vars(protocol).items():
        wanted = getattr(wanted, "__func__", wanted)
        if name in skip or not inspect.isfunction(wanted) or (name.startswith("_") and name != "__call__"):
            continue
        found = entry.forward if name == "__call__" and hasattr(entry, "forward") else getattr(entry, name)
        promised, _ = positional(wanted)
        taken, needed = positional(found)
        assert taken[: len(promised)] == promised or len(taken) >= len(promised), f"{entry}.{name}{taken}"
        assert len(needed) <= len(promised), f"{entry}.{name} needs {needed}"


def constructed_from(entry, protocol):
    promised, _ = positional(protocol.__init__)
    taken, needed = positional(entry.__init__)
    assert taken[: len(promised)] == promised and set(needed) <= set(promised), (entry, taken)


@pytest.mark.parametrize("head", SPECS)
def test_losses(head):
    entry = LOSSES.get(head)
    constructed_from(entry, Loss)
    conforms(entry, Loss, skip=("to", "train", "eval", "state_dict", "load_state_dict"))
    loss = entry(SPECS[head], Hyp())
    assert isinstance(loss, nn.Module)
    assert isinstance(loss.per_image, bool) and loss.labels in ("boxes", "classes", "semantic")
    assert all(isinstance(t, tuple) for t in (loss.extra_terms, loss.omitted_terms, loss.training_terms))


@pytest.mark.parametrize("head", sorted({spec.name for spec in SPECS.values()}))
def test_evaluators_and_post_processing(head):
    for entry, protocol in ((EVALUATORS.get(head), Evaluator), (POSTPROCESS.get(head), PostProcess)):
        constructed_from(entry, protocol)
        conforms(entry, protocol)
        entry(SPECS[head], EvalSettings(names=("a", "b", "c")))


def test_every_head_has_its_loss_evaluator_and_post_processing():
    heads = [HEADS.get(name) for name in HEADS.names()]
    assert set(LOSSES.names()) == set(SPECS) == {getattr(head, "loss", head.name) for head in heads}
    for registry in (EVALUATORS, POSTPROCESS):
        merged = {"panoptic"}  # from the results of two heads
        assert set(registry.names()) == {head.name for head in heads} | merged, registry.kind


@pytest.mark.parametrize("entry", entries(HEADS))
def test_heads(entry):
    assert issubclass(entry, nn.Module) and entry.name in SPECS
    conforms(entry, Head)
    assert isinstance(inspect.getattr_static(entry, "spec"), property)
    assert callable(entry.plan)


@pytest.mark.parametrize("entry", entries(LAYERS))
def test_layers(entry):
    assert issubclass(entry, nn.Module) and positional(entry.plan)[0] == ["row"]


@pytest.mark.parametrize("entry", entries(BACKENDS))
def test_backends(entry):
    conforms(entry, Backend)
    assert entry.title and isinstance(entry.suffixes, tuple) and isinstance(entry.capabilities, frozenset)
    if entry is not BACKENDS.get("pytorch"):
        conforms(entry, ExportBackend)
        assert isinstance(entry.ending, str) and isinstance(entry.packages, tuple)


@pytest.mark.parametrize("entry", entries(LOGGERS))
def test_loggers(entry):
    conforms(entry, Logger)
    assert not positional(entry.__init__)[1]  # built without arguments
    for optional, count in (("batch", 2), ("checkpoint", 3)):
        if hasattr(entry, optional):
            assert len(positional(getattr(entry, optional))[0]) == count


SINKS = [
    kind
    for module in (classification_sinks, features, mask_sinks, prediction_sinks, semantic_sinks)
    for name, kind in vars(module).items()
    if name.endswith("Sink") and inspect.isclass(kind) and kind is not Sink
]


@pytest.mark.parametrize("entry", dict.fromkeys(SINKS))
def test_sinks(entry):
    conforms(entry, Sink)
    assert hasattr(entry, "stopped") or "stopped" in entry.__init__.__code__.co_names


@pytest.mark.parametrize("entry", entries(TASKS))
def test_tasks(entry):
    assert isinstance(entry, Task) and set(entry.heads) <= set(SPECS)
    assert {metric.partition("/")[0] for metric in entry.fitness} == set(entry.heads)
    assert set(entry.fitness) <= set(entry.columns.values())
    for name in ("load", "draw_batch", "draw_labels", "draw_scores"):
        assert callable(getattr(entry, name))


@pytest.mark.parametrize("entry", entries(OPTIMIZERS))
def test_optimizers(entry):
    weights = nn.Parameter(torch.zeros(2))
    optimizer = entry([{"params": [weights], "weight_decay": 0.0}], OptimizerOptions(0.1, 0.9, fused=False))
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("entry", entries(SCHEDULES))
def test_schedules(entry):
    assert isinstance(entry(SchedulePoint(1, 3)), float | int)


@pytest.mark.parametrize(
    ("registry", "count"), [(READERS, 2), (GENERATORS, 1), (CHECKS, 1), (SOURCES, 1), (TARGETS, 4)],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_functions_take_what_their_callers_give(registry, count):
    for name in registry.names():
        entry = registry.get(name)
        taken, needed = positional(entry.__init__ if inspect.isclass(entry) else entry)
        assert len(needed) <= count <= len(taken), name
    for name in SEMANTIC_READERS.names():
        assert len(positional(SEMANTIC_READERS.get(name).read)[1]) <= 2, name


def test_runners_have_the_attributes_that_the_engine_reads():
    from models.builder import build_network
    from models.network_runner import NetworkRunner

    runner = NetworkRunner(build_network("yolov5n.yaml").eval(), torch.device("cpu"))
    conforms(NetworkRunner, Runner)
    assert all(hasattr(runner, name) for name in Runner.__annotations__)


def test_results_and_batches_name_their_tensors():
    """`cpu` and `to` go through the fields by name: a new field has to be listed there."""
    for record, method in ((Results, Results.cpu), (contracts.Batch, contracts.Batch._map)):
        tensors = {name for name, kind in record.__annotations__.items() if "Tensor" in kind or "FineMasks" in kind}
        tensors.discard("batch_masks")  # of other images, too: `cpu` drops it
        assert tensors == set(next(c for c in method.__code__.co_consts if isinstance(c, tuple) and len(c) > 2))


REGISTRIES = (HEADS, LOSSES, EVALUATORS, POSTPROCESS, BACKENDS, LOGGERS, TASKS, OPTIMIZERS, SCHEDULES)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_registered_names_are_found_without_importing(registry):
    assert sorted(registered_names(registry.package)) == registry.names()
