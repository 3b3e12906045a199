"""Folding, counting, ensembles, test-time augmentation, and fetching weights."""

import hashlib
import http.server
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import models.summary
import models.weight_download
from models.builder import build_network, classification_network, read_architecture
from models.ensemble import Ensemble, join_boxes
from models.fuse import fuse
from models.layers.csp import BottleneckCSP
from models.network import Network
from models.network_runner import NetworkRunner
from models.summary import summarize
from models.tta import VIEWS, augmented, rescaled, undo_boxes, undo_prototypes, without_tails
from models.weight_download import download_official
from utils.core import http_client
from utils.core.contracts import HeadSpec
from utils.core.errors import UserError

CPU = torch.device("cpu")


def lively(name: str, classes: int = 2, seed: int = 0) -> Network:
    """Return a network whose normalisation has statistics that matter."""
    torch.manual_seed(seed)
    network = build_network(read_architecture(name), classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n-seg", "yolov5n-ghost", "yolov5n-v5"])
def test_fuse_keeps_outputs(name):
    network = lively(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fuse(network)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        raw, folded_raw = network(images), folded(images)
    for head, tensors in raw.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(folded_raw[head][key], tensor, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_lone_batchnorm_is_not_fused():
    network = build_network(read_architecture("""
nc: 1
anchors: 1
backbone: [[-1, 1, Conv, [8, 3, 8]], [-1, 1, BottleneckCSP, [8]]]
head: [[[1], 1, Detect, [nc, anchors]]]
"""))  # fmt: skip
    assert isinstance(next(m for m in fuse(network).modules() if isinstance(m, BottleneckCSP)).bn, nn.BatchNorm2d)


def test_summary_line():
    network = build_network(read_architecture("yolov5n"))
    network.model[0].requires_grad_(False)
    frozen = sum(p.numel() for p in network.model[0].parameters())
    summary = summarize(network)
    assert summary.line == (
        f"YOLOv5n summary: 214 layers, 1872157 parameters, {1872157 - frozen} gradients, 4.6 GFLOPs"
    )
    assert len(str(summary).splitlines()) == 27
    assert network.training
    quarter = summarize(network, (320, 320))
    assert quarter.gflops == pytest.approx(summary.gflops / 4)
    assert summarize(network, 321).size_hw == (352, 352)


def test_summary_program(monkeypatch):
    command = [sys.executable, "-m", "models.summary", "--cfg", "yolov5n.yaml", "--img", "320"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1].startswith("YOLOv5n summary: 214 layers, 1872157 parameters")
    monkeypatch.setattr(sys, "argv", ["summary", "--cfg", "yolov5nn.yaml"])
    with pytest.raises(UserError, match="no such model YAML"):
        models.summary.main()


def runner(network: Network) -> NetworkRunner:
    return NetworkRunner(network, CPU)


def test_ensemble_concatenates_boxes():
    first, second = runner(lively("yolov5n", seed=1)), runner(lively("yolov5n6", seed=2))
    both = Ensemble([first, second])
    images = torch.randint(0, 256, (2, 3, 64, 128), dtype=torch.uint8)
    found = both.run(images).decoded["detect"]["predictions"]
    alone = [member.run(images).decoded["detect"]["predictions"] for member in (first, second)]
    assert torch.equal(found, torch.cat(alone, dim=1))
    assert (both.stride, both.names, both.fixed_hw) == (64, first.names, None)


def test_ensemble_members_must_agree():
    detector = lively("yolov5n", 2)
    with pytest.raises(UserError, match="2 and 3 classes"):
        Ensemble([runner(detector), runner(lively("yolov5n", 3))])
    with pytest.raises(UserError, match="heads differ: detect and classify"):
        Ensemble([runner(detector), runner(classification_network(detector, 2))])


def test_ensemble_averages_classifiers():
    members = [runner(classification_network(lively("yolov5n", seed=s), 3).eval()) for s in (1, 2)]
    images = torch.rand(2, 3, 64, 64)
    found = Ensemble(members).run(images).decoded["classify"]["probabilities"]
    expected = sum(member.run(images).decoded["classify"]["probabilities"] for member in members) / 2
    torch.testing.assert_close(found, expected)


def test_ensemble_mask_prototypes():
    spec = HeadSpec("segment", 1, (8,), num_masks=2)
    parts = [{"predictions": torch.rand(1, n, 8), "prototypes": torch.rand(1, 2, 3, 4)} for n in (2, 5)]
    joined = join_boxes(parts, spec)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 7)), strict=True):
        masks = torch.einsum("bnm,bmhw->bnhw", joined["predictions"][:, rows, 6:], joined["prototypes"])
        alone = torch.einsum("bnm,bmhw->bnhw", part["predictions"][..., 6:], part["prototypes"])
        torch.testing.assert_close(masks, alone)


def test_tta_views():
    images = torch.rand(1, 3, 384, 640)
    seen = rescaled(images, 0.83, 32)
    # 384 x .83 = 318.72 -> 318 pixels in 320; 640 x .83 = 531.2 -> 531 in 544
    assert seen.shape == (1, 3, 320, 544)
    assert (seen[..., 318:, :] == 0.447).all()
    assert (seen[..., 531:] == 0.447).all()
    assert not (seen[..., :318, :531] == 0.447).all()
    assert rescaled(images, 1.0, 32) is images


def test_tta_inverts_flip():
    mirrored = undo_boxes(torch.tensor([[[83.0, 41.5, 8.3, 16.6, 0.9, 0.5]]]), VIEWS[1], 640)
    assert mirrored[0, 0].tolist() == pytest.approx([540, 50, 10, 20, 0.9, 0.5])


def test_tta_drops_tails():
    # 64 x 64, strides 8, 16, 32, one anchor: 64 + 16 + 4 cells
    passes = [{"predictions": torch.arange(84.0).view(1, 84, 1)} for _ in range(3)]
    first, second, last = (part["predictions"].flatten().tolist() for part in without_tails(passes, 3))
    assert first == list(range(80))
    assert len(second) == 84
    assert last == list(range(64, 84))


def test_tta_prototypes():
    ramp = torch.linspace(0, 1, 640).expand(1, 1, 384, 640)
    base = nn.functional.avg_pool2d(ramp, 4)
    for view in VIEWS:
        images = (ramp.flip(3) if view.mirrored else ramp).expand(1, 3, -1, -1)
        seen = rescaled(images, view.scale, 32)
        prototypes = nn.functional.avg_pool2d(seen[:, :1], 4)
        undone = undo_prototypes(prototypes, view, (384, 640), (seen.shape[2], seen.shape[3]))
        assert undone.shape == base.shape
        torch.testing.assert_close(undone[..., 4:-4, 4:-4], base[..., 4:-4, 4:-4], atol=5e-3, rtol=0)


def test_tta_with_ensemble():
    first, second = runner(lively("yolov5n", seed=1)), runner(lively("yolov5n", seed=2))
    images = torch.rand(1, 3, 64, 64)
    found = augmented(first).run(images).decoded["detect"]["predictions"]
    # 252 - 12 coarsest; .83 -> 64 px again: 252; .67 -> 64 px: 252 - 192 finest
    assert found.shape == (1, 240 + 252 + 60, 7)
    assert torch.equal(found[:, :240], first.run(images).decoded["detect"]["predictions"][:, :240])
    both = augmented(Ensemble([first, second])).run(images).decoded["detect"]["predictions"]
    assert torch.equal(both[:, : found.shape[1]], found)
    assert both.shape[1] == 2 * found.shape[1]


def test_tta_with_masks_and_classifiers():
    network = lively("yolov5n-seg")
    wrapped = augmented(runner(network))
    decoded = wrapped.run(torch.rand(1, 3, 64, 64)).decoded["segment"]
    assert wrapped.specs["segment"].num_masks == 96
    assert decoded["prototypes"].shape == (1, 96, 16, 16)
    assert decoded["predictions"].shape[2] == 5 + 2 + 96
    classifier = runner(classification_network(network, 2).eval())
    images = torch.rand(1, 3, 64, 64)
    plain, mirrored = (classifier.run(seen).decoded["classify"]["probabilities"] for seen in (images, images.flip(3)))
    found = augmented(classifier).run(images).decoded["classify"]["probabilities"]
    assert torch.allclose(found, (plain + mirrored) / 2) and not torch.equal(plain, mirrored)


CONTENT = bytes(range(256)) * 500


class Release(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.send_response(404 if name == "yolov5x6.pt" else 200)
        content = CONTENT[:100] if name == "yolov5l6.pt" else CONTENT
        self.send_header("Content-Length", str(len(content) * (2 if name == "yolov5n6.pt" else 1)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def release(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Release)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(models.weight_download, "RELEASE", f"http://127.0.0.1:{server.server_port}/v7.0")
    monkeypatch.setattr(http_client.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def test_official_weights_download(release, tmp_path, monkeypatch):
    right = (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(models.weight_download, "KNOWN", {"yolov5n.pt": right, "yolov5s.pt": (right[0], "0" * 64),
                                                   "yolov5m.pt": (right[0] - 1, right[1])})  # fmt: skip
    assert download_official("yolov5n.pt", tmp_path / "new").read_bytes() == CONTENT
    assert download_official("yolov5s-seg.pt", tmp_path).read_bytes() == CONTENT  # no checksum is known
    for name, pattern in {"yolov5s.pt": "not the expected file", "yolov5m.pt": "not the expected file",
                          "yolov5x6.pt": "404",
                          "yolov5l6.pt": "100 bytes", "yolov5n6.pt": "cannot be downloaded",
                          "other.pt": "not an official"}.items():  # fmt: skip
        with pytest.raises(UserError, match=pattern):
            download_official(name, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "yolov5s-seg.pt"]


def test_download_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(models.weight_download, "RELEASE", "http://127.0.0.1:9/v7.0")
    monkeypatch.setattr(http_client.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match="cannot be downloaded"):
        download_official("yolov5n.pt", tmp_path)
    assert not list(tmp_path.iterdir())
