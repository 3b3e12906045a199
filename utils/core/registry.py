"""Names to implementations, loaded on first use."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from utils.core.errors import UserError

Entry = TypeVar("Entry")


class Registry:
    """A table of implementations, filled by importing every module of one package at the first lookup.

    Adding an implementation is adding a file whose class or function carries `@REGISTRY.register("name")`.
    Packages that only one entry needs must be imported inside the function that uses them.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Any] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that enters its argument under `name`; a name that is taken raises ValueError."""

        def enter(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already, by {self._entries[name]!r}")
            self._entries[name] = entry
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

    def get(self, name: str, source: object = "") -> Any:
        """Return the entry called `name`; else UserError with the nearest name, and `source`, which asked for it."""
        self._load()
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            place = f"{source}: " if source else ""
            raise UserError(f"{place}unknown {self.kind} {name!r}{hint} (known: {', '.join(self.names())})")
        return self._entries[name]
