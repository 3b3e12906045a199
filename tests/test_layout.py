"""The import rules of docs/architecture.md, and the concerns that belong to single files."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core.data_config import load_data
from utils.core.train_options import training_parser
from utils.core.yaml_file import read_yaml
from utils.datasets import READERS
from utils.datasets.fetch.dataset_download import parse_download
from utils.programs.train import recommended_for

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {  # besides itself; add a row for a new part
    "utils/core": set(),
    "utils/ops": {"utils/core"},
    "utils/loggers": {"utils/core"},
    "utils/losses": {"utils/core", "utils/ops"},
    "utils/metrics": {"utils/core", "utils/ops"},
    "utils/postprocess": {"utils/core", "utils/ops"},
    "utils/plots": {"utils/core", "utils/ops"},
    "utils/datasets": {"utils/core", "utils/ops"},
    "models": {"utils/core"},
    "utils/backends": {"utils/core", "utils/ops", "models"},
    "tools/converters": {"utils/core", "utils/datasets", "models"},
    "tools/dataset_check": {"utils/core", "utils/ops", "utils/datasets", "tools/converters"},
    "utils/tasks": {"utils/core", "utils/datasets", "utils/plots"},
    "utils/engine": {
        "utils/core", "utils/ops", "utils/loggers", "utils/losses", "utils/metrics", "utils/postprocess", "models",
    },
    "utils/flask_rest_api": {"utils/core"},
    "utils/programs": {
        "utils/core", "utils/ops", "utils/postprocess", "utils/plots", "utils/datasets", "utils/tasks", "utils/engine",
        "utils/backends", "models",
    },
    "utils/hub": {
        "utils/core", "utils/ops", "utils/postprocess", "utils/plots", "utils/datasets", "utils/engine",
        "utils/backends", "models",
    },
    "polyolo": {"utils/core", "utils/hub", "utils/programs"},
    "tools/service": {
        "utils/core", "utils/ops", "utils/postprocess", "utils/plots", "utils/datasets", "utils/hub", "utils/backends",
    },
    "tools/pruning": {
        "utils/core", "utils/plots", "utils/datasets", "utils/tasks", "utils/engine", "utils/backends", "models",
    },
    "tools/search": {
        "utils/core", "utils/plots", "utils/datasets", "utils/tasks", "utils/engine", "utils/programs",
        "utils/metrics",
    },
}  # fmt: skip
SCRIPT_FOLDERS = ("", "segment", "classify")
HEAVY = ("torch", "torchvision", "matplotlib", "pydantic", "hotcoco", "pycocotools", "albumentations", "wandb")


def files_below(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


LIBRARY = [*files_below("models"), *files_below("utils"), *files_below("tools"), *files_below("polyolo")]
SCRIPTS = [path for folder in SCRIPT_FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path): path for path in LIBRARY}


def part_of(module: str) -> str:
    """Return the part a library module belongs to: models, polyolo, or a folder directly below utils or tools."""
    pieces = module.split(".")
    return pieces[0] if pieces[0] in ("models", "polyolo") else "/".join(pieces[:2])


def imported(path: Path) -> set[str]:
    """Return every dotted name a file imports, wherever in the file, including `from a import b` as a.b."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """Return the library modules that a file imports."""
    return imported(path) & MODULES.keys()


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_follow_layers(path):
    if name_of(path) in ("utils/__init__.py", "tools/__init__.py"):
        assert not ours(path)
        return
    part = part_of(module_of(path))
    assert part in MAY_IMPORT, f"{part} is a new part: give it a row in MAY_IMPORT and in docs/architecture.md"
    allowed = MAY_IMPORT[part] | {part}
    assert {name for name in ours(path) - {"utils", "tools"} if part_of(name) not in allowed} == set()


def cycle_in(graph: dict[str, set[str]]) -> set[str]:
    """Return the nodes that remain when nodes whose needs are met are taken away again and again."""
    left = dict(graph)
    while ready := [node for node, needs in left.items() if not (needs & left.keys()) - {node}]:
        for node in ready:
            del left[node]
    return set(left)


def test_no_cycle_between_parts():
    assert cycle_in(MAY_IMPORT) == set()
    assert cycle_in({"a": {"b"}, "b": {"a"}, "c": set()}) == {"a", "b"}  # the check can fail


def test_no_cycle_between_files():
    assert cycle_in({module: ours(path) for module, path in MODULES.items()}) == set()


def test_scripts_are_not_imported():
    scripts = {module_of(path) for path in SCRIPTS if path.name != "__init__.py"}
    assert {name_of(path) for path in [*LIBRARY, *SCRIPTS] if imported(path) & scripts} == set()


TRAINING_PATH = (  # train.py, what fit needs at once, and the parts that training a detector finds in registries
    "train", "utils.engine.fit", "utils.tasks.detect", "utils.losses.detect", "utils.metrics.detect",
    "utils.postprocess.detect", "models.heads.detect", "models.layers.common", "utils.datasets.labels.readers.yolo",
    "utils.engine.optimizers.torch_optimizers", "utils.engine.schedules.lr_curves", "utils.loggers.csv_file",
)  # fmt: skip
MAX_TRAINING_CODE_LINES = 11_300  # docstrings, comments and blank lines not counted; lower it when code is removed


def imported_at_once(path: Path) -> set[str]:
    """Return the project modules that importing a file loads, without imports in functions and for type checkers."""
    names, nodes = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    loaded = names & MODULES.keys()
    return loaded | {".".join(name.split(".")[:i]) for name in loaded for i in range(1, name.count(".") + 1)}


def code_lines(path: Path) -> int:
    """Count the lines of a file that are neither blank nor comments nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_documented and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if number not in documented and line.strip() and line.strip()[0] != "#")


def test_training_path_is_short():
    files = {**MODULES, "train": ROOT / "train.py"}
    loaded, pending = set(), list(TRAINING_PATH)
    while pending:
        module = pending.pop()
        if module not in loaded:
            loaded.add(module)
            pending += imported_at_once(files[module])
    assert not {module for module in loaded if module.split(".")[0] == "tools"}
    total = sum(code_lines(files[module]) for module in loaded)
    assert 5000 < total <= MAX_TRAINING_CODE_LINES, f"training a detector loads {total} lines of code"


ONLY_IN = {
    '"RANK"': {"utils/core/distributed.py"},
    '"WORLD_SIZE"': {"utils/core/distributed.py"},
    "sys.path": {  # programs that are not in the top folder
        *(f"{folder}/{file}.py" for folder in ("segment", "classify") for file in ("train", "val", "predict")),
        "models/yolo.py",
        "utils/flask_rest_api/restapi.py",
    },
    "import pickle": {"models/unpickle.py"},  # the restricted reader
    "pickle.load": set(),
    "weights_only=False": set(),
    "shell=True": set(),
}


@pytest.mark.parametrize("text", ONLY_IN)
def test_single_owner_of_global_concerns(text):
    users = {name_of(path) for path in [*LIBRARY, *SCRIPTS] if text in path.read_text(encoding="utf-8")}
    assert users <= ONLY_IN[text]


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=name_of)
def test_no_code_from_text(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__"}, where
        if isinstance(node, ast.ImportFrom):
            assert "*" not in {alias.name for alias in node.names}, where


MAY_CATCH_EVERYTHING = {  # file: (number of such lines, why)
    "utils/loggers/async_logger.py": (1, "packages of services raise anything; logged at once, and the run continues"),
}


def is_broad(kind: ast.expr | None) -> bool:
    """Whether an exception type in a handler or in `suppress` includes every `Exception`."""
    if isinstance(kind, ast.Tuple):
        return any(map(is_broad, kind.elts))
    if isinstance(kind, ast.Starred):  # types that the source does not show
        return True
    return kind is None or ast.unparse(kind).rpartition(".")[2] in {"Exception", "BaseException"}


def returned_values(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """Return the values of a function's `return` statements, those of nested functions left out."""
    values, nodes = [], list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            values.append(node.value)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            nodes += ast.iter_child_nodes(node)
    return values


def swallowing_lines(source: str) -> list[int]:
    """Return the lines that can end exceptions of any kind without raising another.

    These are broad `except` clauses, `suppress` of broad types, and `__exit__` or `__aexit__` methods that can return
    anything but None and False.
    """
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            swallows = is_broad(node.type) and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in {"__exit__", "__aexit__"}:
            swallows = any(ast.unparse(value) not in {"None", "False"} for value in returned_values(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            swallows = any(map(is_broad, node.args))
        else:
            swallows = False
        if swallows:
            lines.append(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=name_of)
def test_no_swallowed_exceptions(path):
    allowed, _ = MAY_CATCH_EVERYTHING.get(name_of(path), (0, ""))
    lines = swallowing_lines(path.read_text(encoding="utf-8"))
    assert len(lines) == allowed, f"{name_of(path)}: lines {lines} swallow exceptions of any kind"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("try:\n  f()\nexcept:\n  pass", [3]),
        ("try:\n  f()\nexcept (OSError, Exception):\n  pass", [3]),
        ("try:\n  f()\nexcept Exception as e:\n  raise OSError from e", []),
        ("try:\n  f()\nexcept OSError:\n  pass", []),
        ("class A:\n  def __exit__(self, *e):\n    self.e = e\n    return self.e is not None", [2]),
        ("class A:\n  async def __aexit__(self, *e):\n    if e:\n      return True", [2]),
        ("class A:\n  def __exit__(self, *e):\n    def f():\n      return 1\n    f()\n    return None", []),
        ("class A:\n  def __exit__(self, *e):\n    self.close()\n    return False", []),
        ("with contextlib.suppress(builtins.Exception):\n  f()", [1]),
        ("with suppress(*errors):\n  f()", [1]),
        ("with suppress(OSError):\n  f()", []),
    ],
)
def test_swallowing_lines(source, lines):
    assert swallowing_lines(source) == lines


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS], ids=name_of)
def test_module_docstring_and_length(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), name_of(path)
    assert len(text.splitlines()) <= 400


def test_yaml_and_python_folders():
    yaml = {*ROOT.glob("models/**/*.y*ml"), *ROOT.glob("utils/**/*.y*ml"), *ROOT.glob("data/**/*.y*ml")}
    homes = (ROOT / "data", ROOT / "models" / "configs")
    assert [name_of(path) for path in yaml if not any(home in path.parents for home in homes)] == []
    assert [name_of(path) for home in homes for path in home.rglob("*.py")] == []


@pytest.mark.parametrize("path", sorted((ROOT / "data").glob("*.yaml")), ids=name_of)
def test_every_data_yaml_loads(path):
    data = load_data(path.stem)
    assert data.source.resolve() == path
    assert {"train", "val"} <= (data.splits if data.names else data.semantic.splits).keys()
    assert data.format in READERS
    if data.download is not None:  # addresses, sizes, checksums: nothing that could be run
        assert read_yaml(path)["download"] == data.download and len(parse_download(data)) == len(data.download)
    training_options = vars(training_parser("").parse_args([]))
    for task in ("detect", "segment"):
        assert recommended_for(task, data).keys() <= training_options.keys()


def test_core_does_not_load_heavy_packages():
    """Scripts build their parsers from utils.core; --help must not wait for torch."""
    modules = [module for module in MODULES if part_of(module) == "utils/core"]
    code = f"import sys, {', '.join(modules)}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
