"""Names to implementations, loaded on first use."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from utils.core.errors import UserError

Entry = TypeVar("Entry")
Added = TypeVar("Added")  # keeps the type of the decorated object; test_contracts.py checks that it is an `Entry`


class Registry(Generic[Entry]):
    """A table of implementations, filled by importing every module of one package at the first lookup.

    Adding an implementation is adding a file whose class or function carries `@REGISTRY.register("name")`.
    Packages that only one entry needs must be imported inside the function that uses them.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Added], Added]:
        """Return a decorator that enters its argument under `name`; a name that is taken raises ValueError."""

        def enter(entry: Added) -> Added:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._entries[name]!r}")
            self._entries[name] = cast(Any, entry)
            return entry

        return enter

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def get(self, name: str, source: object = "") -> Entry:
        """Return the entry called `name`; else UserError with the nearest name, and `source`, which asked for it."""
        self._load()
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            place = f"{source}: " if source else ""
            raise UserError(f"{place}unknown {self.kind} {name!r}{hint} (known: {', '.join(self.names())})")
        return self._entries[name]
