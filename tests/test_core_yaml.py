"""YAML and the data-set record: values mean what they say, faults are one line with a place."""

import pytest

from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.yaml_file import parse_yaml, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 100000.0), ("-.5", -0.5), ("3", 3), ("0.1", 0.1), ("no", "no"), ("on", "on"),
        ("true", True), ("2001-01-01", "2001-01-01"), ("1:30", "1:30"), ("~", None), ("010", 10), ("0x10", "0x10"),
    ],
)  # fmt: skip
def test_yaml_scalars(text, value):
    found = parse_yaml(f"key: {text}", "memory")["key"]
    assert found == value and type(found) is type(value)


def test_round_trip(tmp_path):
    value = {"lr0": 1e-05, "names": ["no", "1e3", "ä"], "nested": {"a": [1, 2.5, None, True]}}
    write_yaml(tmp_path / "x.yaml", value)
    assert read_yaml(tmp_path / "x.yaml") == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", ":1"),  # not closed
        ("a: 1\na: 2\n", ":2"),  # key twice
        ("a: 1\n\tb: 2\n", ":2"),  # tab
        ("a: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['echo hi']", "invalid YAML"),
        ("{1: 2, [3]: 4}", "a key must be"),
        ("- 1\n- 2", "key: value"),
        ("", "empty"),
        ("just words", "key: value"),
        ("a: 'x\nb: 2", "invalid YAML"),
        ("a: b: c", ":1"),
    ],
)
def test_malformed_yaml(tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_yaml(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for name, says in (("x.yaml", "not a text file"), ("y.yaml", "no such"), ("", "folder")):
        with pytest.raises(UserError, match=says):
            read_yaml(tmp_path / name)


GOOD = {"path": "set", "train": "images/train", "val": "images/val", "names": ["a", "b"]}


def data_yaml(tmp_path, **changes):
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    write_yaml(tmp_path / "d.yaml", values)
    return tmp_path / "d.yaml"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": None}, "names"),
        ({"names": []}, "empty"),
        ({"names": "cat"}, "names"),
        ({"names": {0: "a", 2: "b"}}, "without gaps"),
        ({"nc": 5}, "nc: 5"),
        ({"nc": "many"}, "nc"),
        ({"train": None, "val": None}, "train"),
        ({"train": 7}, "train"),
        ({"path": ["x"]}, "path"),
        ({"names": [["nested"]]}, "names"),
        ({"format": 3}, "format"),
    ],
)
def test_malformed_data_yaml(tmp_path, changes, says):
    with pytest.raises(UserError) as caught:
        load_data(str(data_yaml(tmp_path, **changes)))
    assert says in str(caught.value) and "d.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_data_paths_are_relative_to_yaml(tmp_path):
    (tmp_path / "set" / "images" / "train").mkdir(parents=True)
    data = load_data(str(data_yaml(tmp_path, names={1: "b", 0: "a"})))
    assert data.names == ("a", "b") and data.split("train") == (tmp_path / "set" / "images" / "train",)
    with pytest.raises(UserError) as caught:
        data.split("val")
    assert str(tmp_path / "set" / "images" / "val") in str(caught.value)
    with pytest.raises(UserError, match="no `test:` key"):
        data.split("test")


def test_several_image_folders_and_numeric_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
    data = load_data(str(data_yaml(tmp_path, train=["a", "b"], val="../set/a", names=[0, 1.5, "no"])))
    assert [path.name for path in data.split("train")] == ["a", "b"] and data.names == ("0", "1.5", "no")
    assert data.single_class().names == ("item",)


def test_unknown_data_suggests_names():
    with pytest.raises(UserError, match=r"no such data-set YAML.*did you mean .shapes."):
        load_data("shaeps.yaml")
