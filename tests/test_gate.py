"""The data-set gate: it finds what was planted, and nothing else."""

import re
import shutil
from collections import Counter

import pytest
from helpers_gate import PLANTS, sound_set

from utils.core.config import load_data
from utils.core.yaml_file import write_yaml
from utils.gate.findings import KINDS
from utils.gate.gather import gather
from utils.gate.run import judge

OF_CLASSES = {"empty-class", "rare-class", "imbalance"}  # say something about the set as a whole


def findings_of(data):
    """Return {(kind, name of the image or of the file in the text)} of all findings about single files."""
    found = judge(gather(load_data(str(data)), 640))
    names = [(one.kind, re.split(r"[/\\]", one.image or one.text.split(": ")[0])[-1]) for one in found]
    assert len(set(names)) == len({(one.kind, one.image, one.text) for one in found}), "a finding is told twice"
    return {pair for pair in names if pair[0] not in OF_CLASSES}


def plant_all(root, images):
    """Plant every fault into an image of its own; return the findings that must follow."""
    expected = set()
    for (kinds, plant), image in zip(PLANTS.values(), images, strict=False):
        label = root / "labels" / "train" / f"{image.stem}.txt"
        plant(image, label)
        name = "lost.txt" if "orphan-label" in kinds else image.name
        expected |= {(kind, name) for kind in kinds}
    assert len(images) >= len(PLANTS)
    return expected


def group_members(data, kind):
    """Return the sets of names of the images in groups of a kind."""
    found = judge(gather(load_data(str(data)), 640))
    return [{re.split(r"[/\\]", path)[-1] for path in (one.image, *one.others)} for one in found if one.kind == kind]


def test_a_sound_set_has_no_findings_but_the_class_that_never_occurs(tmp_path):
    found = judge(gather(load_data(str(sound_set(tmp_path / "set"))), 640))
    assert [(one.kind, one.text) for one in found] == [("empty-class", "1 of 3 classes have no objects anywhere: cow")]


@pytest.mark.parametrize("name", PLANTS)
def test_one_planted_fault_is_found_alone(name, tmp_path):
    data = sound_set(tmp_path / "set", train=3, val=2)
    kinds, plant = PLANTS[name]
    image = tmp_path / "set" / "images" / "train" / "001.jpg"
    plant(image, tmp_path / "set" / "labels" / "train" / "001.txt")
    assert {kind for kind, _ in findings_of(data)} == kinds


def test_all_faults_at_once_are_found_each_at_its_image_and_no_other(tmp_path):
    data = sound_set(tmp_path / "set")
    expected = plant_all(tmp_path / "set", sorted((tmp_path / "set" / "images" / "train").iterdir()))
    found = findings_of(data)
    # of a group the first image by name is the one a finding names: copies come after numbers
    assert found == expected
    assert group_members(data, "near-leak") == [{"paler_in_val.jpg", "025.jpg"}]


def test_faults_planted_into_coco128_are_found_and_its_own_oddities_are_no_errors(tmp_path, coco128):
    root = tmp_path / "coco128"
    images = sorted((coco128 / "images" / "train2017").glob("*.jpg"))
    for number, path in enumerate(images):
        split = "val" if number % 5 == 4 else "train"
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "images" / split)
        if (label := coco128 / "labels" / "train2017" / f"{path.stem}.txt").is_file():
            shutil.copy(label, root / "labels" / split)
    names = (coco128 / "names.txt").read_text().split("\n")[:80]
    write_yaml(root / "data.yaml", {"train": "images/train", "val": "images/val", "names": names})
    before = findings_of(root / "data.yaml")
    assert {KINDS[kind].severity for kind, _ in before - {pair for pair in before if pair[0] == "never-trained"}} == {
        "note"
    }
    labels = {path: root / "labels" / "train" / f"{path.stem}.txt" for path in sorted(root.glob("images/train/*"))}
    classes = {
        path: [line.split()[0] for line in file.read_text().split("\n") if line]
        for path, file in labels.items()
        if file.is_file()
    }
    often = Counter(number for numbers in classes.values() for number in set(numbers))
    about = {name for _, name in before}
    chosen = [path for path, numbers in classes.items() if numbers and path.name not in about]
    chosen.sort(key=lambda path: -min(often[number] for number in classes[path]))  # so that no class dies out
    expected = plant_all(root, chosen)
    found = findings_of(root / "data.yaml")
    assert found - before == expected and before <= found
