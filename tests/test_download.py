"""Data sets from a web server: whole or not at all, continued where it broke off, and nothing in them is trusted."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import cv2
import pytest
from filelock import FileLock, Timeout
from helpers_gate import scene
from helpers_server import everything, tar_of, zip_of

import check
from utils.core import http_client
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.http_client import RemoteFile, download_file
from utils.core.yaml_file import write_yaml
from utils.datasets.fetch import archives
from utils.datasets.fetch.dataset_download import (
    DownloadItem,
    download_items,
    download_root,
    parse_download,
    resolve_dataset,
)

BODY = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(http_client.time, "sleep", lambda seconds: None)


# ----------------------------------------------------------------------------------------------------------------------
# One file


def test_file_is_fetched_once(server, tmp_path):
    server.files["a.bin"] = BODY
    remote = RemoteFile(server.url("a.bin"), len(BODY), hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest())
    for _ in range(2):
        download_file(remote, tmp_path / "x" / "a.bin")
    assert everything(tmp_path) == {"x/a.bin": BODY} and len(server.asked) == 1


def test_interrupted_download_continues(server, tmp_path):
    server.files["a.bin"], server.cuts["a.bin"] = BODY, [1000, 90_000]
    download_file(RemoteFile(server.url("a.bin"), sha256=hashlib.sha256(BODY).hexdigest()), tmp_path / "a.bin")
    assert everything(tmp_path) == {"a.bin": BODY}
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=90000-"]


def test_partial_download_of_earlier_run(server, tmp_path):
    for version, old in (('"1"', "bytes=5000-"), ('"2"', "bytes=5000-")):
        server.files["a.bin"], server.version, server.asked = BODY, version, []
        target = tmp_path / version.strip('"') / "a.bin"
        target.parent.mkdir()
        (target.parent / "a.bin.part").write_bytes(BODY[:5000])
        (target.parent / "a.bin.part.version").write_text('"1"')
        download_file(RemoteFile(server.url("a.bin")), target)
        assert target.read_bytes() == BODY and server.asked == [("a.bin", old)]


def test_server_without_ranges(server, tmp_path):
    server.files["a.bin"], server.cuts["a.bin"], server.ranges = BODY, [1000], False
    download_file(RemoteFile(server.url("a.bin")), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_unreliable_server(server, tmp_path):
    server.files["a.bin"], server.cuts["a.bin"] = BODY, [1000] * 9
    with pytest.raises(UserError, match=r"cannot be downloaded \(closed after 1000 of 256000 bytes\); .* is kept"):
        download_file(RemoteFile(server.url("a.bin")), tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:1000] and not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, "sha256 .* instead of 0000"),
        ({"md5": "0" * 32}, "md5 .* instead of 0000"),
        ({"size": 5}, "256000 bytes instead of 5"),
    ],
)
def test_wrong_checksum_is_discarded(known, message, server, tmp_path):
    server.files["a.bin"] = BODY
    with pytest.raises(UserError, match=message):
        download_file(RemoteFile(server.url("a.bin"), **known), tmp_path / "a.bin")
    assert everything(tmp_path) == {}


def test_missing_file_or_server(server, tmp_path):
    with pytest.raises(UserError, match="answers 404 Not Found"):
        download_file(RemoteFile(server.url("none.bin")), tmp_path / "a.bin")
    with pytest.raises(UserError, match="cannot be downloaded"):
        download_file(RemoteFile("http://127.0.0.1:9/none.bin"), tmp_path / "a.bin")


def test_two_processes_that_want_one_file_download_it_once(server, tmp_path):
    server.files["a.bin"] = BODY
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download_file(RemoteFile(server.url("a.bin")), tmp_path / "a.bin"), range(4)))
    assert everything(tmp_path) == {"a.bin": BODY} and len(server.asked) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_lock_ends_with_its_process_though_a_forked_child_lives_on(tmp_path):
    code = """if True:
        import os, sys, time
        from filelock import FileLock
        lock = FileLock(sys.argv[1])
        lock.acquire()
        child = os.fork()
        if not child:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(0.3)
        os._exit(1)
    """
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "lock").acquire(blocking=False)
        process.wait(30)
        FileLock(tmp_path / "lock").acquire(timeout=5)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


# ----------------------------------------------------------------------------------------------------------------------
# Archives


@pytest.mark.parametrize(("name", "make"), [
    ("a.zip", zip_of), ("a.tar", partial(tar_of, mode="w")), ("a.tar.gz", tar_of), ("a.tgz", tar_of),
    ("a.tar.xz", partial(tar_of, mode="w:xz")), ("a.tar.bz2", partial(tar_of, mode="w:bz2")),
])  # fmt: skip
def test_unpack_strips_folders_and_macos_files(name, make, tmp_path):
    files = {f"set/images/{number}.txt": b"%d" % number for number in range(30)}
    (tmp_path / name).write_bytes(make(files | {"__MACOSX/set/._x": b"?", "set/.DS_Store": b"?"}))
    assert archives.extract(tmp_path / name, tmp_path / "out", strip=1) == 30
    assert everything(tmp_path / "out") == {f"images/{number}.txt": b"%d" % number for number in range(30)}


def linked(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


HOSTILE = {
    "a way out": ("a.zip", zip_of({"../evil.txt": b"x"}), "outside of its folder"),
    "a way out in the middle": ("a.zip", zip_of({"a/../../evil.txt": b"x"}), "outside of its folder"),
    "a way out with backslashes": ("a.zip", zip_of({"..\\evil.txt": b"x"}), "outside of its folder"),
    "an absolute path": ("a.zip", zip_of({"/evil.txt": b"x"}), "outside of its folder"),
    "a drive": ("a.zip", zip_of({"C:/evil.txt": b"x"}), "outside of its folder"),
    "a link in a zip": ("a.zip", zip_of({linked("evil"): b"/etc"}), "link or a device"),
    "a way out of a tar": ("a.tar.gz", tar_of({"../evil.txt": b"x"}), "outside of its folder"),
    "a symbolic link": ("a.tgz", tar_of({}, name="evil", type=tarfile.SYMTYPE, linkname="/etc"), "link or a device"),
    "a hard link": ("a.tgz", tar_of({}, name="evil", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "link or a device"),
    "a device": ("a.tgz", tar_of({}, name="evil", type=tarfile.CHRTYPE), "link or a device"),
    "a pipe": ("a.tgz", tar_of({}, name="evil", type=tarfile.FIFOTYPE), "link or a device"),
    "half a zip": ("a.zip", zip_of({"a": BODY})[:-30], "damaged archive"),
    "half a tar": ("a.tar.gz", tar_of({"a": BODY})[:-300], "damaged archive"),
    "no zip": ("a.zip", b"<!doctype html>", "damaged archive"),
    "no tar": ("a.tar", b"<!doctype html>", "damaged archive"),
    "nothing": ("a.zip", zip_of({}), "contains no files"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives(what, tmp_path):
    name, data, message = HOSTILE[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        archives.extract(tmp_path / name, tmp_path / "deep" / "out")
    assert all(path.startswith("deep/out/") for path in everything(tmp_path) if path != name)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_fifo()]


def test_zip_crc_error(tmp_path):
    data = bytearray(zip_of({"a.bin": BODY}))
    data[200] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="damaged archive"):
        archives.extract(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_archive_bomb(make, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 1000)
    path = tmp_path / ("a.zip" if make is zip_of else "a.tgz")
    path.write_bytes(make({"zeros": bytes(20_000_000)}))
    with pytest.raises(UserError, match="extracts to more than"):
        archives.extract(path, tmp_path / "out")
    assert (tmp_path / "out" / "zeros").stat().st_size <= 1000 + 100 * path.stat().st_size


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_huge_header(kind, tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**32
    with gzip.open(tmp_path / "a.tgz", "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged archive"):
        archives.extract(tmp_path / "a.tgz", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


def test_skipped_tar_members_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 1000)
    (tmp_path / "a.tgz").write_bytes(tar_of({"__MACOSX/zeros": bytes(50_000_000), "a.txt": b"a"}))
    with pytest.raises(UserError, match="extracts to more than"):
        archives.extract(tmp_path / "a.tgz", tmp_path / "out")


def test_download_size_limits(server, tmp_path, monkeypatch):
    server.files["a.bin"] = BODY
    monkeypatch.setattr(http_client.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=rf"needs {len(BODY)} bytes, but .* has 1000 free"):
        download_file(RemoteFile(server.url("a.bin")), tmp_path / "a.bin")
    server.lies["a.bin"] = ""  # says nothing about its size
    with pytest.raises(UserError, match=r"sends more than the .* the server announces no size; stopped"):
        download_file(RemoteFile(server.url("a.bin")), tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_archive_file_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    (tmp_path / "a.zip").write_bytes(zip_of({f"{number}": b"" for number in range(5)}))
    with pytest.raises(UserError, match="more than 3 files"):
        archives.extract(tmp_path / "a.zip", tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------------------
# Data sets


def picture_bytes(seed):
    return cv2.imencode(".jpg", scene(seed, (48, 64)))[1].tobytes()


def served_set(server, folder, **entry):
    """Serve images and labels as two archives; return a data YAML that names them."""
    names = [f"set/images/{split}/{number}.jpg" for split in ("train", "val") for number in range(3)]
    images = {name: picture_bytes(seed) for seed, name in enumerate(names)}
    labels = {name.replace("images", "labels").replace("jpg", "txt"): b"0 .5 .5 .4 .4\n" for name in images}
    server.files |= {"images.zip": zip_of(images), "labels.tgz": tar_of(labels)}
    checksum = hashlib.sha256(server.files["images.zip"]).hexdigest()
    first = {"url": server.url("images.zip"), "sha256": checksum, "strip": 1} | entry
    download = [first, {"url": server.url("labels.tgz"), "strip": 1}]
    folder.mkdir(exist_ok=True)
    write_yaml(folder / "set.yaml", {
        "path": "set", "train": "images/train", "val": "images/val", "names": ["a"], "download": download,
    })  # fmt: skip
    return folder / "set.yaml"


def test_no_download_without_the_option(server, tmp_path):
    path = served_set(server, tmp_path)
    with pytest.raises(UserError, match=rf"to download it: python check.py --data {path} --download"):
        resolve_dataset(str(path), download=False).split("train")
    assert server.asked == [] and not (tmp_path / "set").exists()


def test_data_set_is_fetched_once(server, tmp_path):
    path = served_set(server, tmp_path)
    line = ["--data", str(path), "--download", "--project", str(tmp_path / "runs"), "--imgsz", "64"]
    check.main(line)
    assert sorted(everything(tmp_path / "set"))[::5] == ["images/train/0.jpg", "images/val/2.jpg", "labels/val/1.txt"]
    assert [name for name, _ in server.asked] == ["images.zip", "labels.tgz"]
    check.main(line)
    assert len(server.asked) == 2 and not (tmp_path / "set.download").exists()


def test_failed_download_resumes_later(server, tmp_path):
    path = served_set(server, tmp_path)
    whole = server.files.pop("labels.tgz")
    with pytest.raises(UserError, match="404"):
        resolve_dataset(str(path), download=True)
    assert not (tmp_path / "set").exists()
    server.files["labels.tgz"] = whole
    resolve_dataset(str(path), download=True)
    assert len(everything(tmp_path / "set")) == 12
    assert [name for name, _ in server.asked] == ["images.zip", "labels.tgz", "labels.tgz"]


def test_existing_files_are_not_overwritten(server, tmp_path):
    path = served_set(server, tmp_path)
    (tmp_path / "set" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "set" / "labels" / "train" / "0.txt").write_text("my own")
    resolve_dataset(str(path), download=True)
    assert (tmp_path / "set" / "labels" / "train" / "0.txt").read_text() == "my own"
    assert len(everything(tmp_path / "set")) == 12


def test_wrong_archive_leaves_no_data_set(server, tmp_path):
    path = served_set(server, tmp_path, sha256="0" * 64)
    with pytest.raises(UserError, match="not the expected file"):
        resolve_dataset(str(path), download=True)
    assert not (tmp_path / "set").exists()
    path = served_set(server, tmp_path / "other", to="elsewhere")
    with pytest.raises(UserError, match=r"was downloaded .* is missing"):
        resolve_dataset(str(path), download=True)


def test_files_without_unpacking(server, tmp_path):
    server.files |= {"a.json": b"{}", "b.zip": zip_of({"x": b""})}
    items = [
        DownloadItem(RemoteFile(server.url("a.json")), "annotations"),
        DownloadItem(RemoteFile(server.url("b.zip")), keep=True),
    ]
    download_items(items, tmp_path / "set")
    assert everything(tmp_path / "set") == {"annotations/a.json": b"{}", "b.zip": server.files["b.zip"]}


def test_existing_data_is_not_fetched(server, tmp_path):
    path = served_set(server, tmp_path, gives="images/train")
    for split in ("train", "val"):
        (tmp_path / "set" / "images" / split).mkdir(parents=True)
    (tmp_path / "set" / "images" / "val").rmdir()
    with pytest.raises(UserError, match=r"was downloaded .* is missing"):
        resolve_dataset(str(path), download=True)  # of the images only part was there
    assert [name for name, _ in server.asked] == ["labels.tgz"]


WRONG = {
    "a program": ("bash get_data.sh", "scripts are never run"),
    "Python": ("from x import y\ny()", "scripts are never run"),
    "a file of this machine": (["file:///etc/passwd"], "not the http or https address"),
    "a folder": (["https://a.org/b/"], "not the http or https address"),
    "an unknown key": ([{"url": "https://a.org/b.zip", "run": "x"}], "unknown key 'run'"),
    "no address": ([{"size": 3}], "expected an address, or a mapping"),
    "half a checksum": ([{"url": "https://a.org/b.zip", "sha256": "12"}], "64 hexadecimal digits"),
    "a way out": ([{"url": "https://a.org/b.zip", "to": "../x"}], "is outside of"),
    "a way out in the name": (["https://a.org/b/%2e%2e"], "does not end in a file name"),
    "a negative size": ([{"url": "https://a.org/b.zip", "size": -1}], "invalid value"),
}


@pytest.mark.parametrize("what", WRONG)
def test_invalid_download_key(what, tmp_path):
    value, message = WRONG[what]
    write_yaml(tmp_path / "a.yaml", {"train": "x", "val": "x", "names": ["a"], "download": value})
    with pytest.raises(UserError, match=message):
        parse_download(load_data(str(tmp_path / "a.yaml")))


def test_download_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOv5_DATASETS_DIR", str(tmp_path))
    assert download_root(load_data("VOC")) == tmp_path / "VOC"
