"""Fixtures for all tests: reference data if present, small data sets and networks, and a process without network."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_bad import image_set, two_class_network
from helpers_run import tiny_data
from helpers_server import Server

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("POLYOLO_SHARED") or ROOT.parent / "shared")


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of train.py."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference data and weights; skips the test if it is absent."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def coco128(shared: Path) -> Path:
    """Folder of the coco128 images and labels."""
    folder = shared / "datasets" / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 at {folder}")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect caches from the user's home folder to a temporary one."""
    monkeypatch.setenv("POLYOLO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refuse look-ups and connections outside this machine, and fail the test even if it ignored the error."""
    reached: list[str] = []
    own = (*LOCAL_NAMES, socket.gethostname())

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in own and not str(name).startswith("127."):
            reached.append(str(name))
            raise ConnectionRefusedError(f"a test tried to reach {name}")

    def guarded(method: str) -> None:
        original = getattr(socket.socket, method)

        def call(self: socket.socket, *given: object) -> object:
            if isinstance(given[-1], tuple):  # an IP address; other families use file names
                check(given[-1][0])
            return original(self, *given)

        monkeypatch.setattr(socket.socket, method, call)

    for method in ("connect", "connect_ex", "sendto"):
        guarded(method)
    look_up = socket.getaddrinfo

    def local_look_up(host: object, *more: object, **options: object) -> object:
        if not re.fullmatch(r"[\d.]+|[\da-fA-F:.]*:[\da-fA-F:.]*", str(host)):  # numeric addresses need no look-up
            check(host)
        return look_up(host, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local_look_up)
    yield reached
    assert not reached, f"a test tried to reach {', '.join(dict.fromkeys(reached))}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of a tiny generated data set with boxes, masks and semantic maps; modules may override it."""
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of a small valid data set, for tests that damage a copy of it."""
    return image_set(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a small untrained network for the classes of `images`."""
    return two_class_network(tmp_path_factory.mktemp("weights") / "two.pt")


@pytest.fixture
def server() -> Iterator[Server]:
    """Local HTTP server without files."""
    running = Server()
    yield running
    running.shutdown()
    running.server_close()
