"""Strict YAML reader and writer.

Unlike YAML 1.1, `1e-3` is a number, `no` is a string and `010` is ten. Repeated keys and aliases are errors.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from utils.core.errors import UserError
from utils.core.files import atomic_path
from utils.core.input_files import read_input

MAX_BYTES = 32 * 2**20  # settings are small; a larger file is the wrong one
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


def _without_yaml_1_1(resolvers: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    replaced = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")}
    return {first: [pair for pair in pairs if pair[0] not in replaced] for first, pairs in resolvers.items()}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and booleans of YAML 1.2, without aliases and repeated keys."""

    yaml_implicit_resolvers = _without_yaml_1_1(yaml.SafeLoader.yaml_implicit_resolvers)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # nested aliases can grow without bound ("billion laughs")
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a string or a number", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _integer(loader: _Loader, node: Any) -> int:
    return int(node.value.replace("_", ""))  # int() reads 010 as ten, YAML 1.1 as eight


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes strings that `_Loader` would read as numbers or booleans."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_text(path: Path, what: str = "file", file_names: bool = False) -> str:
    """Read a UTF-8 text file.

    Args:
        path: The file.
        what: What kind of file is expected, for error messages.
        file_names: The text lists file names, which may have bytes that are not UTF-8; they become surrogates, as
            Python's functions for files expect.

    Raises:
        UserError: If the file is missing, unreadable, no regular file, larger than `MAX_BYTES` or not UTF-8.
    """
    try:
        data = read_input(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: expected a {what}, got a folder") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a {what} ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not file_names or b"\0" in data:
            raise UserError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
        text = data.decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: The YAML document.
        source: Name of the document for error messages.

    Raises:
        UserError: If the document is not valid YAML; the message has the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"{where}: invalid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: invalid YAML: {str(error).splitlines()[0]}") from error


def read_yaml(path: Path, what: str = "YAML file") -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Args:
        path: The file.
        what: What kind of file is expected, for error messages.

    Returns:
        The mapping, with its keys as strings.

    Raises:
        UserError: If the file cannot be read, is not valid YAML or contains anything but a mapping.
    """
    value = parse_yaml(read_text(path, what), str(path))
    if value is None:
        raise UserError(f"{path}: the {what} is empty")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected `key: value` lines in a {what}, got a {type(value).__name__}")
    return {str(key): entry for key, entry in value.items()}


def write_yaml(path: Path, value: Any, header: str = "") -> None:
    """Write plain data (mappings, lists, numbers, strings) to a YAML file atomically.

    Args:
        path: The file.
        value: The data.
        header: Comment lines in front of it.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(header + dump_yaml(value), encoding="utf-8")


def dump_yaml(value: Any) -> str:
    """Format plain data as YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
