"""Arrange the files of a clone as one package `polyolo`, and rewrite their imports accordingly.

In a clone `train.py`, `models/`, `utils/` and `tools/` are at the top, names that would collide with those of other
projects in an environment. The wheel has them as `polyolo/train.py`, `polyolo/models/` and so on.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

PACKAGE = "polyolo"
LIBRARIES = ("models", "utils", "tools")
PROGRAMS = ("train", "val", "detect", "convert", "export", "benchmark", "serve", "check", "tune", "prune")
PROGRAM_FOLDERS = ("segment", "classify")
DATA_SUFFIXES = (".yaml", ".html")
METADATA_FILES = ("pyproject.toml", "README.md", "LICENSE")
_IMPORTERS = ("Registry", "registered_names", "import_module")  # their arguments can be names of modules
_LIBRARY_NAME = re.compile(rf"(?:{'|'.join(LIBRARIES)})(?:\.\w+)*")
_STATEMENT = re.compile(rf"^(\s*from\s+|\s*import\s+)((?:{'|'.join(LIBRARIES)})\b)")
_COMMANDS = (  # commands in messages and docstrings
    (re.compile(rf"\bpython ({'|'.join(PROGRAMS)})\.py\b"), rf"{PACKAGE} \1"),
    (re.compile(rf"\bpython ({'|'.join(PROGRAM_FOLDERS)})/(\w+)\.py\b"), rf"{PACKAGE} \1 \2"),
    (re.compile(rf"(\btorchrun [^\n]*?)\b({'|'.join(PROGRAMS)})\.py\b"), rf"\1-m {PACKAGE} \2"),
    (re.compile(rf"(\btorchrun [^\n]*?)\b({'|'.join(PROGRAM_FOLDERS)})/(\w+)\.py\b"), rf"\1-m {PACKAGE} \2 \3"),
    (re.compile(r"\bpython -m models\.summary\b"), f"{PACKAGE} summary"),
)


def stage_package(root: Path, stage: Path) -> None:
    """Write the package, and the files that its metadata comes from, to an empty folder.

    Args:
        root: Folder of the clone.
        stage: Where the package is written, as `stage/polyolo`.
    """
    package = stage / PACKAGE
    folders = [root / name for name in (PACKAGE, *LIBRARIES, *PROGRAM_FOLDERS, "data")]
    files = [*(root / f"{name}.py" for name in PROGRAMS), *(path for folder in folders for path in folder.rglob("*"))]
    for source in sorted(files):
        target = package / source.relative_to(root / PACKAGE if root / PACKAGE in source.parents else root)
        if "__pycache__" in source.parts or not source.is_file():
            continue
        if source.suffix == ".py":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rewrite_module(source.read_text(encoding="utf-8")), encoding="utf-8")
        elif source.suffix in DATA_SUFFIXES or source.name == "py.typed":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for name in PROGRAM_FOLDERS:
        (package / name / "__init__.py").write_text(f'"""Programs of the command `{PACKAGE} {name}`."""\n')
    for path in [*(root / name for name in METADATA_FILES), *root.glob("requirements*.txt")]:
        shutil.copyfile(path, stage / path.name)


def rewrite_module(text: str) -> str:
    """Rewrite the source of a module for its place inside the package.

    Imports of `models`, `utils` and `tools`, and the names of their modules that registries import, get the prefix
    `polyolo.`; changes of `sys.path` become `pass`; commands in messages become those of the installed program.

    Raises:
        ValueError: The module imports a library in a form whose names would change, such as `import utils.core`.
    """
    lines = text.splitlines(keepends=True)
    for node in sorted(_nodes_to_change(ast.parse(text)), key=lambda node: (-node.lineno, -node.col_offset)):
        index = node.lineno - 1
        if isinstance(node, ast.Expr):
            lines[index] = f"{lines[index][: node.col_offset]}pass\n"
        elif isinstance(node, ast.Constant):
            encoded = lines[index].encode()  # offsets of the syntax tree count bytes
            start = node.col_offset + 1
            lines[index] = (encoded[:start] + f"{PACKAGE}.".encode() + encoded[start:]).decode()
        else:
            lines[index] = _STATEMENT.sub(rf"\1{PACKAGE}.\2", lines[index])
    changed = "".join(lines)
    for pattern, replacement in _COMMANDS:
        changed = pattern.sub(replacement, changed)
    if left := [ast.unparse(node) for node in _nodes_to_change(ast.parse(changed))]:
        raise ValueError(f"these statements cannot be rewritten for the package: {'; '.join(left)}")
    return changed


def _nodes_to_change(tree: ast.Module) -> list[ast.stmt | ast.expr]:
    """Find imports of the libraries, module names in calls, and changes of `sys.path`."""
    found: list[ast.stmt | ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_library(node.module or ""):
            found.append(node)
        elif isinstance(node, ast.Import) and any(_is_library(alias.name) for alias in node.names):
            if len(node.names) > 1 or node.names[0].asname is None:
                raise ValueError(f"line {node.lineno}: `{ast.unparse(node)}` binds a library; use `from` or `as`")
            found.append(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _IMPORTERS:
            found += [one for one in node.args if isinstance(one, ast.Constant) and _is_library(str(one.value))]
        elif isinstance(node, ast.Expr) and ast.unparse(node).startswith("sys.path."):
            found.append(node)
    return found


def _is_library(name: str) -> bool:
    return _LIBRARY_NAME.fullmatch(name) is not None
