"""YAML that means what it says: 1e-3 is a number, `no` is a word, a key written twice is an error with its line."""

import re
from pathlib import Path
from typing import Any

import yaml

from utils.core.errors import UserError
from utils.core.files import atomic_path

MAX_BYTES = 32 * 2**20  # a settings file is small; more than this is the wrong file
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


def _without_yaml_1_1(resolvers: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    replaced = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")}
    return {first: [pair for pair in pairs if pair[0] not in replaced] for first, pairs in resolvers.items()}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans, and no repeated keys."""

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
                raise yaml.MarkedYAMLError(problem="a key must be a word or a number", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _integer(loader: _Loader, node: Any) -> int:
    return int(node.value.replace("_", ""))  # 010 is ten here, not eight


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would take for a number or a boolean."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def read_text(path: Path, what: str = "file") -> str:
    """Return the text of `path`; raise UserError if it is missing, unreadable, too large or not UTF-8."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes is too large for a {what}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a {what} is expected, this is a folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of YAML `text`; `source` names it in errors, which carry the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from error


def read_yaml(path: Path, what: str = "YAML file") -> dict[str, Any]:
    """Return the mapping that the YAML file `path` holds; anything else is a UserError naming file and line."""
    value = parse_yaml(read_text(path, what), str(path))
    if value is None:
        raise UserError(f"{path}: the {what} is empty")
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {what} is a list of `key: value` lines, this is a {type(value).__name__}")
    return {str(key): entry for key, entry in value.items()}


def write_yaml(path: Path, value: Any, header: str = "") -> None:
    """Write `value` (plain dictionaries, lists, numbers, words) to `path` in one step."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    with atomic_path(path) as temporary:
        temporary.write_text(header + text, encoding="utf-8")
