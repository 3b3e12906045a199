"""`--data` with a folder of YOLO labels as labelling tools export it, and the data set of a checkpoint."""

import pytest
from helpers_labels import write_image

from utils.core import known_data
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.known_data import data_of_classes
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.label_scan import build_index


def labelled(image, label=None):
    """Write an image with one object of class 1."""
    image.parent.mkdir(parents=True, exist_ok=True)
    write_image(image)
    label = label or image.with_suffix(".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text("1 0.5 0.5 0.2 0.2\n")


def objects(data, split):
    """Return the number of images and the classes of the labels of a split."""
    index = build_index(data, split)
    return len(index), index.boxes[:, 0].tolist()


def test_label_studio_export(tmp_path, caplog):
    for name in ("a", "b"):
        labelled(tmp_path / "images" / f"{name}.jpg", tmp_path / "labels" / f"{name}.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "notes.json").write_text("{}")
    with caplog.at_level("WARNING", logger="polyolo"):
        data = load_data(str(tmp_path))
    assert data.names == ("cat", "dog") and "convert.py split" in caplog.text
    assert objects(data, "train") == objects(data, "val") == (2, [1, 1])


def test_classes_beside_divided_images(tmp_path, caplog):
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            labelled(tmp_path / "images" / split / f"{i}.jpg", tmp_path / "labels" / split / f"{i}.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = load_data(str(tmp_path))
    assert (objects(data, "train")[0], objects(data, "val")[0]) == (2, 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def darknet(folder, prefix="data/", valid=True):
    """Write Darknet's layout: labels beside images, lists with paths from the parent of the folder."""
    for split, name in (("train", "a"), ("valid", "b")):
        labelled(folder / "obj_train_data" / f"{name}.jpg")
        (folder / f"{split}.txt").write_text(f"{prefix}obj_train_data/{name}.jpg\n")
    (folder / "obj.names").write_text("cat\ndog\n")
    lines = ["classes = 2", f"train = {prefix}train.txt", f"names = {prefix}obj.names", "backup = backup/"]
    (folder / "obj.data").write_text("\n".join(lines + ([f"valid = {prefix}valid.txt"] if valid else [])) + "\n")
    return folder


@pytest.mark.parametrize("prefix", ["data/", ""])
def test_darknet_folder(prefix, tmp_path):
    data = load_data(str(darknet(tmp_path / "data", prefix)))
    assert data.names == ("cat", "dog")
    assert objects(data, "train") == objects(data, "val") == (1, [1])
    assert [build_index(data, split).path(0)[-5] for split in ("train", "val")] == ["a", "b"]


def test_darknet_faults(tmp_path, caplog):
    data = load_data(str(darknet(tmp_path / "data", valid=False)))
    assert data.splits["val"] == data.splits["train"] and "no `valid =`" in caplog.text
    with pytest.raises(UserError, match="rename the folder to data"):
        load_data(str(darknet(tmp_path / "elsewhere" / "unpacked")))
    (tmp_path / "data" / "obj.names").write_text("cat\n")
    with pytest.raises(UserError, match="`classes = 2`, but data/obj"):
        load_data(str(tmp_path / "data"))
    (tmp_path / "data" / "obj.data").write_text("train = data/train.txt\n")
    with pytest.raises(UserError, match="no line `names = …`"):
        load_data(str(tmp_path / "data"))


def test_folder_with_data_yaml(tmp_path):
    labelled(tmp_path / "train" / "images" / "a.jpg", tmp_path / "train" / "labels" / "a.txt")
    write_yaml(tmp_path / "data.yaml", {"train": "train/images", "val": "train/images", "names": ["cat", "dog"]})
    data = load_data(str(tmp_path))
    assert data.source == tmp_path / "data.yaml" and objects(data, "val") == (1, [1])


# ----------------------------------------------------------------------------------------------------------------------
# The data set of a checkpoint that names none


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A project whose data/ has three YAMLs; two of them have the same classes."""
    for name in ("big", "big128", "other"):
        names = ["x"] if name == "other" else ["cat", "dog"]
        write_yaml(
            tmp_path / "data" / f"{name}.yaml",
            {"path": f"../{name}", "train": "images", "val": "images", "names": names},
        )
    monkeypatch.setattr(known_data, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def data_folder(shipped, monkeypatch):
    """The shipped YAMLs are found by their names as well."""
    monkeypatch.setattr("utils.core.data_paths.ROOT", shipped)
    return shipped


@pytest.mark.parametrize(("present", "expected"), [(["big"], "big.yaml"), (["big", "big128"], "big128.yaml")])
def test_data_of_classes_prefers_the_small_set(present, expected, data_folder):
    for name in present:
        (data_folder / name / "images").mkdir(parents=True)
    assert data_of_classes("net.pt", ("cat", "dog")) == expected


def test_data_of_classes_names_what_is_missing(data_folder):
    with pytest.raises(
        UserError, match=r"big128\.yaml, big\.yaml, whose images are not here; give --data big128\.yaml"
    ):
        data_of_classes("net.pt", ("cat", "dog"))
    with pytest.raises(UserError, match="are those of none in data/; give --data"):
        data_of_classes("net.pt", ("cow", "cat", "dog"))
