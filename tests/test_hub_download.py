"""Weights from the Hugging Face Hub: by name, on request only, from a server in the test."""

import pytest
import torch
from helpers_server import everything

import polyolo
from models import hub_download
from models.hub_download import parse_hub_file
from models.weight_download import resolve_weights
from utils.backends.open_weights import open_weights
from utils.core.errors import UserError

BODY = bytes(range(256)) * 100


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """Serve as the Hub; the current folder is empty."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("").rstrip("/"))
    monkeypatch.chdir(tmp_path)
    return server


def test_file_is_downloaded_once(hub, tmp_path):
    hub.files["someone/birds/resolve/main/weights/best.pt"] = BODY
    for _ in range(2):
        path = resolve_weights("hf://someone/birds/weights/best.pt", download=True)
        assert path.as_posix() == "hf/someone/birds/weights/best.pt"
    assert everything(tmp_path) == {path.as_posix(): BODY} and len(hub.asked) == 1
    assert resolve_weights("hf://someone/birds/weights/best.pt", download=False) == path  # no network needed any more


def test_revisions_are_kept_apart(hub, tmp_path):
    hub.files["someone/birds/resolve/main/best.pt"], hub.files["someone/birds/resolve/v2/best.pt"] = BODY, b"second"
    first, second = (resolve_weights(f"hf://someone/birds{at}/best.pt", download=True) for at in ("", "@v2"))
    assert first.read_bytes() == BODY and second.read_bytes() == b"second"


def test_nothing_is_asked_without_download(hub):
    with pytest.raises(UserError, match="--download fetches it to"):
        resolve_weights("hf://someone/birds/best.pt", download=False)
    assert hub.asked == []


@pytest.mark.parametrize(
    "text",
    [
        *("hf://someone/best.pt", "hf://someone/birds/", "hf://../birds/best.pt", "hf://someone/birds/../../best.pt"),
        *("hf://someone/birds/notes.txt", "hf://some one/birds/best.pt", "hf://someone/birds@/best.pt"),
        "hf://someone//best.pt",
    ],
)
def test_malformed_addresses(text):
    with pytest.raises(UserError, match="--weights hf://"):
        parse_hub_file(text)


def test_missing_file_and_default_address(hub, monkeypatch):
    with pytest.raises(UserError, match="404"):
        resolve_weights("hf://someone/birds/best.pt", download=True)
    monkeypatch.delenv("HF_ENDPOINT")
    assert parse_hub_file("hf://a/b/c d.pt".replace(" ", "-")).url == "https://huggingface.co/a/b/resolve/main/c-d.pt"


def test_downloaded_weights_are_opened(hub, network_file):
    hub.files["someone/birds/resolve/main/best.pt"] = network_file.read_bytes()
    opened = open_weights(["hf://someone/birds/best.pt"], torch.device("cpu"), download=True)
    assert opened.paths == (hub_download.FOLDER / "someone" / "birds" / "best.pt",) and opened.name == "best"
    model = polyolo.load("hf://someone/birds/best.pt")
    assert model.names
