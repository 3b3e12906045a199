"""Tar shards: the same batches as folders, indices, patterns, and hostile tar files."""

import io
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_shards import NAMES, encoded, pack, write_folders, write_tar

from utils.core.contracts import Batch
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.yaml_file import write_yaml
from utils.datasets.file_access import open_binary, read_binary
from utils.datasets.image_files import ImageFault, probe_image, read_image
from utils.datasets.labels.label_scan import build_index
from utils.datasets.labels.semantic_scan import build_semantic_index
from utils.datasets.shards import shard_files, shard_index
from utils.datasets.shards.shard_files import open_shard
from utils.datasets.shards.shard_set import ShardSet
from utils.datasets.sources.frame_sources import open_source
from utils.tasks import TASKS
from utils.tasks.joint import join_tasks

PIXELS = np.full((20, 30, 3), 90, np.uint8)
JPEG = encoded(PIXELS, ".jpg")


def yaml_for(folder: Path, **more: object) -> str:
    """Write a data YAML of all shards in a folder."""
    values = {"path": str(folder), "train": "train-*.tar", "val": "train-*.tar", "names": NAMES}
    write_yaml(folder / "data.yaml", values | more)
    return str(folder / "data.yaml")


def batches(task: str, data: str, training: bool, workers: int = 0, **more: object) -> list[Batch]:
    """Load two epochs of a task."""
    request = LoadRequest(load_data(data), "train", training, 64, 4, 32, Hyp(), workers=workers, **more)
    joined = join_tasks(TASKS.get("detect"), TASKS.get("semantic"))
    loader = (joined if task == "joint" else TASKS.get(task)).load(request)
    return [batch for epoch in range(2) for part in loader.parts for batch in part.epoch(epoch)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    """Compare everything in the batches but the paths."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert [(info.index, info.geometry) for info in one.info] == [
            (info.index, info.geometry) for info in other.info
        ]
        for name in ("images", "boxes", "boxes_known", "masks", "classes", "semantic"):
            value, wanted = getattr(one, name), getattr(other, name)
            assert (value is None) == (wanted is None), name
            assert value is None or torch.equal(value, wanted), name


SEMANTIC = {"semantic": {"train": "train-*.tar", "val": "train-*.tar", "names": ["ground", "thing"]}}


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "folders")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("task", "labels", "more"),
    [
        ("detect", "labels/train", {}),
        ("segment", "outlined/labels/train", {}),
        ("joint", "labels/train", SEMANTIC),
        ("semantic", "labels/train", SEMANTIC),
    ],
)
def test_batches_equal_those_of_folders(folders, tmp_path, task, labels, more, training):
    images = "outlined/images/train" if task == "segment" else "images/train"
    yaml = yaml_for(pack(folders, tmp_path / "shards", images, labels), **more)
    assert_same(batches(task, yaml, training), batches(task, str(folders / f"{task}.yaml"), training))


@pytest.mark.parametrize("kind", ["cls", "names", "folders"])
def test_classification_shards_equal_class_folders(folders, tmp_path, kind):
    found = sorted((folders / "classes/train").rglob("*.jpg"), key=lambda path: path.name)  # classes in turn
    members = []
    for file in found:
        label = file.parent.name
        stem = f"{label}/{file.stem}" if kind == "folders" else file.stem
        members.append((f"{stem}.jpg", file.read_bytes()))
        if kind != "folders":
            members.append((f"{stem}.cls", (label if kind == "names" else str(NAMES.index(label))).encode()))
    write_tar(tmp_path / "shards" / "train-000.tar", members)
    yaml = yaml_for(tmp_path / "shards")
    assert_same(batches("classify", yaml, True), batches("classify", str(folders / "classes"), True))


def test_workers_read_the_same(folders, tmp_path):
    yaml = yaml_for(pack(folders, tmp_path / "shards"))
    assert_same(batches("detect", yaml, True, workers=2), batches("detect", yaml, True))


def test_faults_are_those_of_folders(folders, tmp_path, caplog):
    (folders / "labels/train/0001.txt").write_text("0 0.5 0.5 2 0.5\n")
    (folders / "images/train/0002.jpg").write_bytes(b"no image")
    (folders / "labels/train/0004.txt").write_bytes(b"\xff\xfe0")
    shards = pack(folders, tmp_path / "shards")
    caplog.set_level("INFO", "polyolo")

    def scan(data: str) -> tuple[list[str], object]:
        caplog.clear()
        index = build_index(load_data(data), "train", allow_faults=True)
        lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
        return [line.rsplit("/", 1)[-1].split("report")[0] for line in lines], (len(index), index.count)

    lines, counts = scan(yaml_for(shards))
    assert (lines, counts) == scan(str(folders / "detect.yaml"))
    assert len(lines) == 3 and lines[0].startswith("0001.txt:1: coordinate 2 above 1")
    caplog.clear()
    build_index(load_data(yaml_for(shards)), "train", allow_faults=True)  # from the caches
    assert any("0002.jpg: not an image" in record.message for record in caplog.records)


def test_cache_on_disk_and_in_memory_leave_the_shards_alone(folders, tmp_path):
    shards = pack(folders, tmp_path / "shards")
    yaml = yaml_for(shards)
    plain = batches("detect", yaml, True)
    before = sorted(path.name for path in shards.iterdir())
    assert_same(batches("detect", yaml, True, cache="disk"), plain)
    assert_same(batches("detect", yaml, True, cache="ram"), plain)
    assert sorted(path.name for path in shards.iterdir()) == before
    assert {path.suffix for path in shards.iterdir()} == {".tar", ".npz", ".yaml"}


def test_index_is_rebuilt_only_when_the_file_changes(folders, tmp_path, monkeypatch):
    shard = pack(folders, tmp_path / "shards", shards=1) / "train-000.tar"
    parsed = []
    original = shard_index.TarParser
    monkeypatch.setattr(shard_index, "TarParser", lambda *given: parsed.append(1) or original(*given))
    count = len(open_shard(str(shard)).index)
    monkeypatch.setattr(shard_files, "_shards", {})
    assert len(open_shard(str(shard)).index) == count and not parsed[1:]
    write_tar(shard, [("a.jpg", JPEG)])
    assert len(open_shard(str(shard)).index) == 1 and len(parsed) == 2
    cache = Path(f"{shard}{shard_index.CACHE_SUFFIX}")
    cache.write_bytes(cache.read_bytes()[:200])  # damaged
    monkeypatch.setattr(shard_files, "_shards", {})
    assert len(open_shard(str(shard)).index) == 1 and len(parsed) == 3


def test_index_in_the_cache_folder_beside_a_read_only_shard(tmp_path):
    shard = write_tar(tmp_path / "shards" / "a.tar", [("a.jpg", JPEG)])
    shard.parent.chmod(0o555)
    try:
        assert len(open_shard(str(shard)).index) == 1
        assert [path.name for path in shard.parent.iterdir()] == ["a.tar"]
    finally:
        shard.parent.chmod(0o755)


def test_members_are_read_like_files(tmp_path):
    big = os.urandom(100_000)
    shard = write_tar(tmp_path / "a.tar", [("a/b.bin", big), ("a/c.jpg", JPEG), ("./d.txt", b"x")])
    assert read_binary(f"{shard}/a/b.bin") == big
    with open_binary(f"{shard}/a/b.bin") as file:
        assert file.seek(-5, io.SEEK_END) == 99_995 and file.read() == big[-5:]
        assert file.seek(70_000) and file.read(10) == big[70_000:70_010]
    assert read_binary(f"{shard}/d.txt") == b"x"
    assert probe_image(Path(f"{shard}/a/c.jpg")) == (20, 30)
    assert (read_image(Path(f"{shard}/a/c.jpg")) == read_image_bytes(tmp_path)).all()
    with pytest.raises(FileNotFoundError):
        read_binary(f"{shard}/missing.jpg")
    with pytest.raises(ImageFault, match="No such file"):
        read_image(Path(f"{shard}/missing.jpg"))
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "x").write_bytes(b"in a folder")
    assert read_binary(tmp_path / "folder.tar" / "x") == b"in a folder"


def read_image_bytes(folder: Path) -> np.ndarray:
    (folder / "plain.jpg").write_bytes(JPEG)
    return read_image(folder / "plain.jpg")


def test_shard_truncated_while_in_use_is_a_fault_of_the_image(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("b.jpg", JPEG)])
    open_shard(str(shard))
    read_image(Path(f"{shard}/a.jpg"))
    os.truncate(shard, 1600)
    with pytest.raises(ImageFault, match="truncated after it was indexed"):
        read_image(Path(f"{shard}/b.jpg"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unicode_names(tmp_path, form):
    names = ["short.jpg", "ä/ö.jpg", "d/" * 40 + "x" * 60 + ".jpg"]
    names += [] if form == tarfile.USTAR_FORMAT else ["y" * 200 + ".jpg", "é" * 150 + ".jpg"]
    shard = write_tar(tmp_path / "a.tar", [(name, JPEG) for name in names], format=form)
    found = ShardSet([str(shard)], "test").images
    assert list(found) == [f"{shard}/{name}" for name in names]
    assert all(read_binary(path) == JPEG for path in found)


def special(kind: bytes, name: str = "x.jpg", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def hostile(path: Path, *infos: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> str:
    """Write a tar file with one good image between hostile members."""
    with tarfile.open(path, "w", format=form) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(JPEG + bytes(info.size)) if info.isreg() else None)
        good = tarfile.TarInfo("good.jpg")
        good.size = len(JPEG)
        tar.addfile(good, io.BytesIO(JPEG))
    return str(path)


def regular(name: str, size: int = len(JPEG), **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = size, pax
    return info


@pytest.mark.parametrize(
    ("infos", "note"),
    [
        ([special(tarfile.SYMTYPE)], "1 links, devices or other special files left out"),
        ([special(tarfile.LNKTYPE), special(tarfile.CHRTYPE), special(tarfile.FIFOTYPE)], "3 links, devices"),
        ([regular("../../up.jpg"), regular("/abs.jpg")], "2 files with a path that leads out of the shard"),
        ([regular("a\\b.jpg")], "1 files with a path that leads out"),
        ([regular("line\nbreak.jpg")], "1 files with a name that is too long or has a line break"),
        ([regular("same.jpg"), regular("same.jpg")], "1 repeated names, the last file of each is used"),
        ([special(tarfile.GNUTYPE_SPARSE, "hole.jpg")], "1 sparse files left out"),
    ],
)
def test_hostile_members_are_left_out_with_one_message(tmp_path, infos, note):
    shards = ShardSet([hostile(tmp_path / "a.tar", *infos)], "test")
    assert len(shards.notes) == 1 and note in shards.notes[0] and shards.notes[0].startswith(f"{tmp_path}/a.tar: ")
    assert [Path(path).name for path in shards.images] in (["good.jpg"], ["same.jpg", "good.jpg"])
    assert read_binary(shards.images[-1]) == JPEG


def test_pax_sparse_member_is_left_out(tmp_path):
    info = regular("x.jpg", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"})
    shards = ShardSet([hostile(tmp_path / "a.tar", info, form=tarfile.PAX_FORMAT)], "test")
    assert "1 sparse files left out" in shards.notes[0] and len(shards.images) == 1


def with_size(path: Path, field: bytes) -> str:
    """Write a tar file whose only member states another size."""
    header = bytearray(regular("x.jpg").tobuf())
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + JPEG + bytes(4096))
    return str(path)


def refused(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Write tar files that cannot be used; their paths and messages."""
    path = tmp_path / "x.tar"
    good = write_tar(tmp_path / "good.tar", [("a.jpg", JPEG), ("b.jpg", JPEG * 3)]).read_bytes()
    files: dict[str, bytes] = {
        "cut": good[:2600],
        "cut in header": good[:1600],
        "damaged header": good[: 512 + 1024] + b"garbage!" * 64 + bytes(1024),
        "gzip": b"\x1f\x8b" + bytes(1000),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(1000),
        "text": b"no tar at all\n" * 100,
    }
    messages = {
        "cut": "truncated: member 'b.jpg' ends at byte",
        "cut in header": "truncated in the header at byte 1536",
        "damaged header": "damaged header at byte 1536",
        "gzip": "compressed with gzip",
        "zstd": "compressed with zstd",
        "text": "not a tar file",
    }
    found = {}
    for name, content in files.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        found[name] = (str(path), messages[name])
    huge = b"\x80" + (2**80).to_bytes(11, "big")
    found["huge"] = with_size(tmp_path / "huge.tar", huge), "truncated: member 'x.jpg' ends at byte"
    negative = with_size(tmp_path / "negative.tar", b"\xff" * 12)
    found["negative"] = negative, "damaged size in the header at byte 0"
    bomb = hostile(tmp_path / "bomb.tar", regular("x.jpg", comment="A" * 2**21), form=tarfile.PAX_FORMAT)
    found["pax bomb"] = bomb, "extended header of 20"
    long_name = hostile(tmp_path / "long.tar", regular("n" * 2**21 + ".jpg"))
    found["long name"] = long_name, "extended header of 20"
    os.mkfifo(tmp_path / "pipe.tar")
    found["pipe"] = str(tmp_path / "pipe.tar"), "not a regular file"
    found["missing"] = str(tmp_path / "none.tar"), "cannot be read (No such file or directory)"
    empty = write_tar(tmp_path / "empty.tar", [("a.txt", b"0")])
    found["no images"] = str(empty), "no images in"
    return found


def test_unusable_files_are_refused_with_one_line(tmp_path):
    for name, (path, message) in refused(tmp_path).items():
        with pytest.raises(UserError) as caught:
            ShardSet([path], "data.yaml: `train:`")
        assert message in str(caught.value) and path in str(caught.value), name
        assert "\n" not in str(caught.value)


def test_missing_end_marker_is_a_warning(tmp_path):
    content = write_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("b.jpg", JPEG)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: 2 * (512 + -(-len(JPEG) // 512) * 512)])
    shards = ShardSet([str(tmp_path / "a.tar")], "test")
    assert len(shards.images) == 2 and "no end marker" in shards.notes[0]


def test_too_large_member_is_a_fault_without_reading_it(tmp_path):
    path = tmp_path / "a.tar"
    size = 2**31
    with path.open("wb") as file:  # with a hole, so that it takes no space
        file.write(regular("big.jpg", size).tobuf())
        file.truncate(512 + size + 1024)
    open_shard(str(path))
    with pytest.raises(ImageFault, match="2147483648 bytes are too many, at most 1073741824"):
        read_image(Path(f"{path}/big.jpg"))


@pytest.mark.parametrize(
    "pattern",
    ["train-{000..002}.tar", "train-00{0,1,2}.tar", "train-*.tar", "train-00?.tar", ".", "{train}-00[0-2].tar"],
)
def test_patterns_in_the_yaml(folders, tmp_path, pattern):
    shards = pack(folders, tmp_path / "shards")
    write_yaml(shards / "data.yaml", {"train": pattern, "val": ["train-000.tar"], "names": NAMES})
    data = load_data(str(shards / "data.yaml"))
    assert len(build_index(data, "train")) == 12 and len(build_index(data, "val")) == 4


def test_folder_and_pattern_as_data(folders, tmp_path):
    shards = pack(folders, tmp_path / "shards")
    for text in (shards, shards / "train-{000..002}.tar", shards / "*.tar"):
        with pytest.raises(UserError, match=r"shards without class names; put data.yaml or classes.txt"):
            load_data(str(text))
    (shards / "classes.txt").write_text("cat\ndog\n")
    for text in (shards, shards / "train-{000..002}.tar", shards / "*.tar"):
        data = load_data(str(text))
        assert data.names == ("cat", "dog") and len(build_index(data, "train")) == 12
    yaml_for(shards, val="train-002.tar")
    assert len(build_index(load_data(str(shards)), "val")) == 4
    with pytest.raises(UserError, match="no such tar file"):
        load_data(str(tmp_path / "none-*.tar"))
    with pytest.raises(UserError, match="does not exist; looked for"):
        build_index(load_data(yaml_for(shards, train="train-{000..003}.tar")), "train")


def test_images_without_masks_have_boxes_only(folders, tmp_path):
    (folders / "masks/train/0005.png").unlink()
    shards = pack(folders, tmp_path / "shards")
    data = load_data(yaml_for(shards, **SEMANTIC))
    assert len(build_semantic_index(data, "train")) == 11 and len(build_index(data, "train")) == 12
    alone = replace(data, splits={}, names=())
    with pytest.raises(UserError, match=r"1 faulty masks among 12, the first: .*0005.mask.png: no such mask"):
        build_semantic_index(alone, "train")


def test_png_beside_a_jpeg_is_its_mask(tmp_path):
    mask = encoded(np.ones((20, 30), np.uint8), ".png")
    write_tar(tmp_path / "train-0.tar", [("a.png", mask), ("a.jpg", JPEG), ("b.png", encoded(PIXELS, ".png"))])
    shards = ShardSet([str(tmp_path / "train-0.tar")], "test")
    assert [Path(path).name for path in shards.images] == ["a.jpg", "b.png"]
    masks, present = shards.masks()
    assert [Path(path).name for path in masks] == ["a.png", "b.mask.png"] and present.tolist() == [True, False]


def test_prediction_reads_the_images_of_a_shard(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("b.jpg", JPEG), ("b.txt", b""), ("a.jpg", JPEG), ("c.jpg", b"broken")])
    frames = [frame for frames in open_source(str(shard)) for frame in frames]
    assert [Path(frame.path).name for frame in frames] == ["b.jpg", "a.jpg"] and frames[0].image.shape == (20, 30, 3)


def test_index_of_many_images_opens_fast(tmp_path, monkeypatch):
    """The full measurement is benchmarks/shards.py."""
    members = [
        shard_index.Member(f"{n:08d}.{end}".encode(), 512 * n, 100) for n in range(20_000) for end in ("jpg", "txt")
    ]
    shard = write_tar(tmp_path / "train-0.tar", [("a.jpg", JPEG)])
    index = shard_index.ShardIndex.build(members)
    monkeypatch.setattr(shard_index, "_parse", lambda *given: (index, []))
    open_shard(str(shard))
    monkeypatch.undo()
    monkeypatch.setattr(shard_files, "_shards", {})
    started = time.perf_counter()
    images = ShardSet([str(shard)], "test").images
    assert time.perf_counter() - started < 1
    assert len(images) == 20_000 and images[12_345].endswith("00012345.jpg")
    assert open_shard(str(shard)).index.find(b"00019999.txt") == 39_999
    assert sum(values.nbytes for values in index.arrays().values()) < 60 * len(members)
