"""Official checkpoints: known predictions, and files that lie, break off or attack."""

import copy
import io
import os
import pickle
import random
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.builder import build_network, classification_network, read_architecture
from models.checkpoint import load_checkpoint
from models.fuse import fuse
from models.network import Network
from models.torch_archive import read_archive
from models.unpickle import Name, Record, Unpickler
from utils.core.errors import UserError

DETECTORS = {
    "yolov5n": "yolov5n_bus",
    "yolov5n_legacy_nonzip": "yolov5n_bus",
    "random_yolov5n6_v7.0_p6": "random_yolov5n6_v7.0_p6_bus",
    "random_yolov5s_v5.0_focus": "random_yolov5s_v5.0_focus_bus",
    "det_pvdefect_nc5": "det_pvdefect_nc5_bus",
    "yolov5n-seg": "yolov5n-seg_bus",
}


def to_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", DETECTORS)
def test_official_predictions(name, shared):
    checkpoint = load_checkpoint(shared / "weights" / f"{name}.pt")
    network = checkpoint.network
    with np.load(shared / "reference" / f"{DETECTORS[name]}.npz") as reference:
        expected, rows = reference["predictions"], torch.from_numpy(reference["row_index"])
        prototypes = reference.get("prototypes")
        images = to_images(reference["input"])
    with torch.inference_mode():
        decoded = network.decode(network(images))[checkpoint.task]
    found = decoded["predictions"][:, rows].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[..., :4], expected[..., :4], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], atol=1e-4)
    if prototypes is not None:
        np.testing.assert_allclose(decoded["prototypes"].numpy(), prototypes, atol=1e-4)
    assert checkpoint.source == "yolov5"
    assert len(checkpoint.names) == network.heads[checkpoint.task].num_classes


def test_official_classifier_logits(shared):
    checkpoint = load_checkpoint(shared / "weights" / "cls_kuih_nc10.pt")
    with np.load(shared / "reference" / "cls_kuih_nc10_bus.npz") as reference:
        images, expected = to_images(reference["input"]), reference["logits"]
    with torch.inference_mode():
        raw = checkpoint.network(images)
    np.testing.assert_allclose(raw["classify"]["logits"].numpy(), expected, atol=1e-4)
    assert (checkpoint.task, checkpoint.names[0], len(checkpoint.names)) == ("classify", "Donat", 10)


ADVERSARIAL = {
    "git-lfs-pointer.pt": "git-LFS pointer.*git lfs pull",
    "html404_saved_as.pt": "web page",
    "truncated_at_1MiB_yolov5n.pt": "damaged or cut short",
    "yolov5-face_stripped_unknown_modules.pt": "ShuffleV2Block, StemBlock",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_wrong_files(name, shared):
    path = shared / "weights" / "adversarial" / name
    with pytest.raises(UserError, match=ADVERSARIAL[name]) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Small files in the official layout, made here

SMALL = """
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
anchors:
  - [10, 13]
  - [30, 61]
backbone:
  - [-1, 1, Conv, [8, 3, 8]]
  - [-1, 1, C3, [8]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[1, 2], 1, Detect, [nc, anchors]]
"""


def disguise(module: nn.Module, places: dict[str, types.ModuleType]) -> nn.Module:
    """Give every module of ours the class path that YOLOv5 pickles under."""
    for part in module.modules():
        kind = type(part)
        if kind.__module__.startswith("models."):
            place = "models.yolo" if kind.__name__ in ("Detect", "Segment") else "models.common"
            if not hasattr(places[place], kind.__name__):
                fake = type(kind.__name__, (nn.Module,), {"__module__": place})
                setattr(places[place], kind.__name__, fake)
            part.__class__ = getattr(places[place], kind.__name__)
    return module


def official_file(
    path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, kind: str = "DetectionModel", legacy: bool = False,
    described: bool = True,
) -> Path:  # fmt: skip
    """Write `network` the way YOLOv5's training does: the whole object, its classes under models.yolo and .common."""
    places = {name: types.ModuleType(name) for name in ("models.yolo", "models.common")}
    for name, place in places.items():
        monkeypatch.setitem(sys.modules, name, place)
    layers = disguise(nn.Sequential(*copy.deepcopy(network).half().model), places)
    for layer, route in zip(layers, network.routes, strict=True):
        layer.f = -1 if len(route.sources) == 1 else list(route.sources)
    outer = type(kind, (nn.Module,), {"__module__": "models.yolo"})
    places["models.yolo"].__dict__[kind] = outer
    model = outer()
    model.model, model.names, model.nc = layers, dict(enumerate(network.names)), len(network.names)
    model.stride = torch.tensor([8.0, 16.0])
    if described:
        model.yaml = {k: v for k, v in network.architecture.items() if k not in ("name", "source")}
    content = {
        "epoch": 3,
        "best_fitness": np.float64(0.5),
        "model": model,
        "ema": None,
        "opt": {"data": Path("d.yaml")},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch cannot find the source text of classes made here
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for name in places:
        monkeypatch.delitem(sys.modules, name)
    return path


def small_network() -> Network:
    torch.manual_seed(0)
    network = build_network(read_architecture(SMALL), names=("cat", "dog")).eval()
    network(torch.rand(4, 3, 32, 32))
    return network


@pytest.mark.parametrize("legacy", [False, True])
def test_legacy_and_zip_serialisation(legacy, tmp_path, monkeypatch):
    network = small_network()
    loaded = load_checkpoint(official_file(tmp_path / "own.pt", network, monkeypatch, legacy=legacy))
    assert (loaded.names, loaded.task, loaded.meta["epoch"]) == (("cat", "dog"), "detect", 3)
    halved = copy.deepcopy(network).half().float().state_dict()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, halved[name]), name
    assert loaded.network.specs["detect"].anchors == (((10, 13),), ((30, 61),))


def test_activations_from_file(tmp_path, monkeypatch):
    text = SMALL.replace("C3,", "BottleneckCSP,") + "activation: nn.LeakyReLU(0.2)\ncsp_activation: nn.LeakyReLU(0.1)\n"
    network = build_network(read_architecture(text))
    for key in ("activation", "csp_activation"):
        network.architecture.pop(key)
    loaded = load_checkpoint(official_file(tmp_path / "old.pt", network, monkeypatch)).network
    assert loaded.model[0].act.negative_slope == 0.2
    assert loaded.model[1].act.negative_slope == 0.1


def test_fused_networks_load(tmp_path, monkeypatch):
    network = fuse(small_network())
    network.architecture = {k: v for k, v in network.architecture.items() if k != "fused"}
    for module in network.modules():  # YOLOv5 removes the attribute instead
        if isinstance(getattr(module, "bn", None), nn.Identity):
            del module.bn
    loaded = load_checkpoint(official_file(tmp_path / "folded.pt", network, monkeypatch)).network
    assert loaded.architecture["fused"]
    assert isinstance(loaded.model[0].bn, nn.Identity)
    assert torch.equal(loaded.model[0].conv.bias, network.model[0].conv.bias.half().float())


def test_classifiers_from_layers(tmp_path, monkeypatch):
    network = classification_network(small_network(), 3, ("a", "b", "c"), cutoff=3)
    path = official_file(tmp_path / "cls.pt", network, monkeypatch, "ClassificationModel", described=False)
    loaded = load_checkpoint(path)
    assert (loaded.names, loaded.task) == (("a", "b", "c"), "classify")
    images = torch.rand(1, 3, 32, 32)
    expected = copy.deepcopy(network).half().float().eval()(images)["classify"]["logits"]
    assert torch.equal(loaded.network(images)["classify"]["logits"], expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_only_raise_user_errors(legacy, tmp_path, monkeypatch):
    path = official_file(tmp_path / "own.pt", small_network(), monkeypatch, legacy=legacy)
    content = path.read_bytes()
    pickled = len(content) // 2 if not legacy else 8000
    rng = random.Random(0)
    broken = tmp_path / "broken.pt"
    outcomes = {"loaded": 0, "refused": 0}
    for case in range(150):
        damaged = bytearray(content)
        if case % 3 == 0:
            del damaged[rng.randrange(len(content)) :]
        else:
            for _ in range(1 + case % 3):
                damaged[rng.randrange(pickled)] = rng.randrange(256)
        broken.write_bytes(damaged)
        try:
            load_checkpoint(broken)
        except UserError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
        else:
            outcomes["loaded"] += 1
            assert case % 3 or damaged == content
    assert outcomes["refused"] > 50


def repacked(path: Path, pickled: bytes) -> Path:
    """Write a zip checkpoint around a pickle of one's own; checksums are right."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return path


def test_fuzzed_pickle_only_raises_user_errors(tmp_path, monkeypatch):
    path = official_file(tmp_path / "own.pt", small_network(), monkeypatch)
    with zipfile.ZipFile(path) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in names if name.endswith("data.pkl"))
    rng, broken = random.Random(1), tmp_path / "broken.pt"
    refused = 0
    for _ in range(250):
        changed = bytearray(names[pickled])
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        with zipfile.ZipFile(broken, "w") as archive:
            for name, content in names.items():
                archive.writestr(name, bytes(changed) if name == pickled else content)
        try:
            load_checkpoint(broken)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Attack(os.system, f"touch {mark}"),
        lambda mark: Attack(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Attack(exec, f"open({str(mark)!r}, 'w')"),
        lambda mark: Attack(getattr, Attack(__import__, "os"), "system"),
        lambda mark: Attack(getattr, dict, "get"),
        lambda mark: Attack(torch.load, str(mark)),
        lambda mark: Attack(pickle.loads, b"x"),
        lambda mark: {"model": Attack(os.system, f"touch {mark}")},
    ],
)
def test_pickle_calls_are_refused(attack, protocol, tmp_path):
    mark = tmp_path / "mark"
    pickled = pickle.dumps(attack(mark), protocol=protocol)
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(repacked(tmp_path / "evil.pt", pickled))
    assert not mark.exists()


def test_inst_opcodes_are_refused(tmp_path):
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(repacked(tmp_path / "evil.pt", b"\x80\x02(S'true'\nios\nsystem\n."))


def test_successor_checkpoints_are_refused(tmp_path):
    pickled = b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n)\x81."
    with pytest.raises(UserError, match="ultralytics package"):
        load_checkpoint(repacked(tmp_path / "yolov8n.pt", pickled))


def test_pickle_memory_limit(tmp_path):
    bombs = [
        b"\x80\x02r\xff\xff\xff\x7f.",  # memo index
        b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",  # bytes of giant length
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # number of giant length
        b"\x80\x02\x5d" + b"\x32" * 50 + b"\x86" * 40 + b".",
    ]
    for bomb in bombs:
        with pytest.raises(UserError):
            load_checkpoint(repacked(tmp_path / "bomb.pt", bomb))
    nested = b"\x80\x02)" + b"2\x86" * 200 + b"}q\x00h\x00"  # a tuple whose hash would take 2^200 steps
    with pytest.raises(UserError):
        load_checkpoint(repacked(tmp_path / "bomb.pt", nested + b"\x85}2\x88s."))


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(10_000_000))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_unknown_classes_become_records():
    pickled = pickle.dumps(OrderedDict(a=[1, 2.5, "x", None, True], b=(1, {"k": {3}})), protocol=2)
    assert Unpickler(lambda _: None).load(io.BytesIO(pickled)) == OrderedDict(
        a=[1, 2.5, "x", None, True], b=(1, {"k": {3}})
    )
    record = Unpickler(lambda _: None).load(io.BytesIO(b"\x80\x02cmodels.common\nConv\n)\x81}U\x01aK\x01sb."))
    assert isinstance(record, Record)
    assert (record.name, record.state) == (Name("models.common", "Conv"), {"a": 1})


def test_file_type_detection(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02}.")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "tar.pt").write_bytes(bytes(257) + b"ustar" + bytes(300))
    torch.save({"a": torch.ones(2)}, tmp_path / "bare.pt")
    torch.save([1], tmp_path / "list.pt")
    expected = {"script": "TorchScript", "empty": "is empty", "text": "not a checkpoint", "folder": "folder",
                "tar": "tar archive", "bare": "bare weights", "list": "holds a list",
                "none": "no such file"}  # fmt: skip
    for name, pattern in expected.items():
        with pytest.raises(UserError, match=pattern) as caught:
            load_checkpoint(tmp_path / f"{name}.pt")
        assert str(caught.value).startswith(str(tmp_path / f"{name}.pt"))


def test_missing_official_weights():
    with pytest.raises(UserError, match=r"releases/download/v7\.0/yolov5s-seg\.pt.*AGPL-3\.0.*--download"):
        load_checkpoint("nowhere/yolov5s-seg.pt")


def test_archive_reads_torch_files(tmp_path):
    value = {"half": torch.rand(3, 2).half(), "view": torch.arange(12).view(3, 4)[:, 1:3], 5: [torch.tensor(True)]}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        read = read_archive(path)
        assert torch.equal(read["half"], value["half"])
        assert torch.equal(read["view"], value["view"])
        assert torch.equal(read[5][0], value[5][0])
