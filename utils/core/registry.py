"""Registries that map names to implementations and import them at the first lookup."""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from utils.core.errors import UserError, did_you_mean

Entry = TypeVar("Entry")
Added = TypeVar("Added")  # keeps the type of the decorated object; test_contracts.py checks that it is an `Entry`


class Registry(Generic[Entry]):
    """Table of implementations, filled by importing every module of one package at the first lookup.

    To add an implementation, add a file whose class or function carries `@REGISTRY.register("name")`. A package that
    only one entry needs must be imported inside the function that uses it.

    Args:
        kind: What the entries are, in the singular, for error messages ("loss").
        package: Import name of the package whose modules register the entries ("utils.losses").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Added], Added]:
        """Create a decorator that registers its argument under `name`.

        Raises:
            ValueError: If the name is registered already.
        """

        def add(entry: Added) -> Added:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._entries[name]!r}")
            self._entries[name] = cast(Any, entry)
            return entry

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True

    def names(self) -> list[str]:
        """List all registered names in alphabetical order."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def get(self, name: str, source: object = "") -> Entry:
        """Look up the entry registered under `name`.

        Args:
            name: The registered name.
            source: The file or option that asked for it, for the error message.

        Raises:
            UserError: If there is no such entry; the message suggests the most similar names.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        hint = did_you_mean(name, self._entries) or ";"
        fault = f"unknown {self.kind} {name!r}{hint} all of them are in {self.package.replace('.', '/')}/"
        raise UserError(f"{source}: {fault}" if source else fault)


def registered_names(package: str) -> list[str]:
    """List the names that the modules of a package register, without importing them.

    Importing may load torch, which is too slow for the help text of a program.

    Args:
        package: Import name of the package ("utils.losses").

    Returns:
        Names in the order of files and lines.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return re.findall(r'^@?[A-Z_]+\.register\("([^"]+)"\)', text, flags=re.MULTILINE)
