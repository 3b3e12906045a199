"""What tests share: the reference data, if it is there, and a quiet, small, offline process."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_bad import image_set, two_class_network
from helpers_server import Server

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("POLYOLO_SHARED") or ROOT.parent / "shared")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder that holds train.py."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with reference data and weights; skip the test where it is absent."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def coco128(shared: Path) -> Path:
    """Return the folder of the coco128 images and labels."""
    folder = shared / "datasets" / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 at {folder}")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches of the tests out of the user's home."""
    monkeypatch.setenv("POLYOLO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


HOME_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refuse every look-up and connection that leaves this machine; the test fails even if the error was swallowed."""
    reached: list[str] = []
    own = (*HOME_NAMES, socket.gethostname())

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in own and not str(name).startswith("127."):
            reached.append(str(name))
            raise ConnectionRefusedError(f"a test reached for {name}")

    def guarded(method: str) -> None:
        original = getattr(socket.socket, method)

        def call(self: socket.socket, *given: object) -> object:
            if isinstance(given[-1], tuple):  # an address of IP; those of other families are names of files
                check(given[-1][0])
            return original(self, *given)

        monkeypatch.setattr(socket.socket, method, call)

    for method in ("connect", "connect_ex", "sendto"):
        guarded(method)
    look_up = socket.getaddrinfo

    def look_up_at_home(host: object, *more: object, **options: object) -> object:
        if not re.fullmatch(r"[\d.]+|[\da-fA-F:.]*:[\da-fA-F:.]*", str(host)):  # numbers are not asked for anywhere
            check(host)
        return look_up(host, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up_at_home)
    yield reached
    assert not reached, f"a test reached for {', '.join(dict.fromkeys(reached))}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data YAML of a small set to spoil."""
    return image_set(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a small untrained network that fits that set."""
    return two_class_network(tmp_path_factory.mktemp("weights") / "two.pt")


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a web server on this machine, with no files yet."""
    running = Server()
    yield running
    running.shutdown()
    running.server_close()
