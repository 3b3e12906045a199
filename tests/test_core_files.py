"""Files are written whole or not at all; runs get folders of their own; registries explain themselves."""

import os
import subprocess
import sys

import numpy as np
import pytest

from utils.core import distributed as dist
from utils.core.errors import UserError
from utils.core.files import atomic_path, newest_file, run_folder, write_text
from utils.core.interrupt import Interrupt
from utils.core.registry import Registry
from utils.core.seed import generator
from utils.core.timing import duration


def test_atomic_path_keeps_old_file_on_failure(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("crash")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_unwritable_paths(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")
    with pytest.raises(UserError, match="cannot be written"):
        run_folder(tmp_path / "file", "exp")


def test_run_folder_numbering(tmp_path):
    names = [run_folder(tmp_path / "runs", "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"] and run_folder(tmp_path / "runs", "exp", exist_ok=True).name == "exp"


def test_newest_by_modification_time(tmp_path):
    for index, name in enumerate(("a", "b", "c")):
        path = tmp_path / name / "last.pt"
        write_text(path, name)
        os.utime(path, (100 - index, 100 - index))
    found = newest_file(tmp_path, "last*.pt")
    assert found is not None and found.parent.name == "a"
    assert newest_file(tmp_path, "best.pt") is None


def test_registry_errors():
    registry = Registry("loss", "utils.core")
    registry.register("detect")(int)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("detect")(float)
    with pytest.raises(UserError, match="did you mean 'detect'"):
        registry.get("detekt")
    assert registry.names() == ["detect"] and "detect" in registry


def test_seeded_generators():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [generator(*key).random(4).tobytes() for key in keys]
    assert len(set(draws)) == len(keys)
    assert np.array_equal(generator(3, 2, 1).random(5), generator(3, 2, 1).random(5))


def test_single_process_collectives():
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert dist.gather(5) == [5] and dist.broadcast("x") == "x"
    with dist.main_first():
        pass


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_interrupt_first_and_second_signal():
    with Interrupt("stopping") as interrupt:
        os.kill(os.getpid(), 2)
        assert interrupt.requested


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py"])
def test_help_does_not_load_torch(root, script):
    code = (
        "import runpy, sys, contextlib, io\n"
        f"sys.argv = ['{script}', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        f"    runpy.run_path('{script}', run_name='__main__')\n"
        "assert 'usage' in out.getvalue()\n"
        "heavy = {'torch', 'cv2', 'matplotlib', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
