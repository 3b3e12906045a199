"""Interpreter of pickles that executes nothing: classes of the file become inert records.

The opcodes come from `pickletools.genops`; the pickle module is not used, so that nothing a file names is imported or
called. Names outside an allow-list are refused.

`torch.load(weights_only=True)` with `torch.serialization.safe_globals` cannot replace this. Measured with torch 2.14
and stand-in classes for the modules of YOLOv5, it

- fails on files from before the zip format, whose persistent ids contain modules ("Only persistent_load of storage is
  allowed"), and on YOLOv5's segmentation checkpoints, which name `getattr` (one method of one class is allowed here);
- needs every class of a file registered beforehand, with a constructor that fits, before it tells what the file holds:
  an unknown network could not be named in the error message;
- accepts compressed members, tensors of 10^11 elements over a storage of one (stride 0), and dictionary keys of nested
  tuples whose hash takes exponential time; sizes are limited here;
- raises IndexError or TypeError on damaged files, where a caller needs one kind of error.
"""

from __future__ import annotations

import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from utils.core.errors import UserError

MAX_COPIED = 20_000_000  # total elements of sets, dictionaries and strings that calls may copy


class PickleError(ValueError):
    """The stream is not a well-formed pickle, or does what no checkpoint does."""


@dataclass(frozen=True)
class Name:
    """A class or function named in the file; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """An object of the file: class, constructor arguments and attributes."""

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """The elements of a tensor storage, as a flat tensor."""

    values: Tensor


STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {"float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}
_INERT_PACKAGES = ("models", "utils", "torchvision.transforms", "torch.nn.modules", "torch.optim", "pathlib")
_INERT_NAMES = {
    *(("torch", name) for name in (*STORAGE_TYPES, *_DTYPES, "Size", "device")),
    *(("torch.cuda", name) for name in STORAGE_TYPES),
    *((package, name) for package in ("__builtin__", "builtins") for name in ("getattr", "set")),
    *(("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
    *((package, name) for package in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("_reconstruct", "scalar")),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("_codecs", "encode"), ("argparse", "Namespace"), ("torch.nn.parameter", "Parameter"),
    ("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor"), ("__builtin__", "object"), ("builtins", "object"),
}  # fmt: skip


def resolve_global(module: str, name: str) -> Name:
    """Check a name against the allow-list and return it as an inert record; others raise UserError."""
    if module.split(".")[0] == "ultralytics":
        raise UserError(
            f"is a checkpoint of the ultralytics package (it holds {module}.{name}); only YOLOv5's can be read"
        )
    in_package = any(module == package or module.startswith(f"{package}.") for package in _INERT_PACKAGES)
    if "." in name or not (in_package or (module, name) in _INERT_NAMES):
        raise UserError(f"refused: the file names {f'{module}.{name}'[:80]!r}, which no checkpoint needs")
    return Name(module, name)


def _rebuild_tensor(*arguments: Any) -> Tensor:
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise PickleError("a tensor without storage")
    count = 1
    for length in size:
        count *= length
    if count > storage.values.numel():  # stride 0 would multiply the storage
        raise PickleError("a tensor is larger than its storage")
    return torch.as_strided(storage.values, tuple(size), tuple(stride), offset)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise PickleError(f"unknown encoding {encoding[:20]!r}")
    return text.encode(encoding)


def _attribute(owner: Any, attribute: Any) -> Name:
    """Resolve `getattr` for the only attribute that checkpoints read: YOLOv5's segmentation files."""
    if owner != Name("models.yolo", "Detect") or attribute != "forward":
        raise UserError("refused: the file reads attributes of objects, which no checkpoint needs")
    return Name("models.yolo", "Detect.forward")


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    return tuple(numbers)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "_codecs.encode": _encode,
    "__builtin__.getattr": _attribute,
    "builtins.getattr": _attribute,
    "torch.Size": _size,
    "torch.device": lambda *parts: ":".join(str(part) for part in parts if isinstance(part, (str, int))),
    "pathlib.PosixPath": lambda *parts: "/".join(str(part) for part in parts if isinstance(part, str)),
    "pathlib.WindowsPath": lambda *parts: "/".join(str(part) for part in parts if isinstance(part, str)),
}


def _checked_key(key: Any) -> Any:
    """Accept plain keys only: hashing nested tuples can take exponential time."""
    if key is not None and not isinstance(key, (str, int, float, bytes, Name)):
        raise PickleError("a dictionary key that is not a string or number")
    return key


class Unpickler:
    """Stack machine for pickle opcodes; `persistent` converts the ids of storages to `Storage`."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self._persistent = persistent
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def load(self, stream: IO[bytes]) -> Any:
        """Read the next object of `stream` and leave the stream behind it."""
        self._stack, self._outer, self._memo = [], [], {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # invalid escapes in names of a damaged file
            return self._run(stream)

    def _run(self, stream: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self._stack.pop()
            handler = _HANDLERS.get(opcode.name)
            if handler is not None:
                handler(self, argument)
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise PickleError(f"opcode {opcode.name}")
        raise PickleError("no STOP opcode")

    def _count(self, values: Any) -> Any:
        self._copied += len(values)
        if self._copied > MAX_COPIED:
            raise PickleError("too many elements")
        return values

    def _items(self) -> list[Any]:
        """Pop the items above the last mark."""
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _wrap(self, kind: Callable[[list[Any]], Any]) -> None:
        items = self._items()  # replaces the stack, so that it must come before the append
        self._stack.append(kind(items))

    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._stack.append(resolve_global(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name that is not a string")
        self._stack.append(resolve_global(module, name))

    def _set_pairs(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        target = target.state if isinstance(target, Record) else target
        if not isinstance(target, dict) or len(pairs) % 2:
            raise PickleError("SETITEMS on an object that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_checked_key(key)] = value

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_pairs([key, value])

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise PickleError("APPENDS on an object that is not a list")
        self._stack[-1].extend(items)

    def _add(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], set):
            raise PickleError("ADDITEMS on an object that is not a set")
        self._stack[-1].update(_checked_key(item) for item in items)

    def _tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) != size:
            raise PickleError("the stack is too short")
        self._stack[-size:] = [items]

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleError("REDUCE of an object that is not a name")
        self._stack.append(self._call(function, arguments))

    def _call(self, function: Name, arguments: tuple[Any, ...]) -> Any:
        text = str(function)
        if text in _FUNCTIONS:
            for argument in arguments:  # repeated copies of a long string would exhaust the memory
                if isinstance(argument, (str, list, tuple)):
                    self._count(argument)
            return _FUNCTIONS[text](*arguments)
        if text in ("__builtin__.set", "builtins.set"):
            return {_checked_key(item) for item in self._count(arguments[0])} if arguments else set()
        if text == "collections.OrderedDict":
            pairs = self._count(arguments[0]) if arguments else []
            return OrderedDict((_checked_key(key), value) for key, value in pairs)
        if text == "collections.defaultdict":
            return {}
        return Record(function, arguments)

    def _new_object(self, _: Any) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Name) or not isinstance(arguments, tuple):
            raise PickleError("NEWOBJ of an object that is not a name")
        self._stack.append(Record(kind, arguments))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, (dict, set)):  # their attributes, like _metadata, are not needed
            raise PickleError("BUILD on an object without attributes")


def _pushes(value: Any) -> Callable[[Unpickler, Any], None]:
    return lambda machine, _: machine._stack.append(value() if callable(value) else value)


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_HANDLERS: dict[str, Callable[[Unpickler, Any], None]] = {
    "NONE": _pushes(None),
    "NEWTRUE": _pushes(True),
    "NEWFALSE": _pushes(False),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_TUPLE": _pushes(tuple),
    "EMPTY_SET": _pushes(set),
    "MARK": Unpickler._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._items().clear(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "PUT": Unpickler._put,
    "BINPUT": Unpickler._put,
    "LONG_BINPUT": Unpickler._put,
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "GET": lambda machine, index: machine._stack.append(machine._memo[index]),
    "BINGET": lambda machine, index: machine._stack.append(machine._memo[index]),
    "LONG_BINGET": lambda machine, index: machine._stack.append(machine._memo[index]),
    "GLOBAL": Unpickler._global,
    "STACK_GLOBAL": Unpickler._stack_global,
    "TUPLE": lambda machine, _: machine._wrap(tuple),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._wrap(list),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._items()),
    "ADDITEMS": lambda machine, _: machine._add(machine._items()),
    "SETITEM": Unpickler._set_item,
    "SETITEMS": lambda machine, _: machine._set_pairs(machine._items()),
    "REDUCE": Unpickler._reduce,
    "NEWOBJ": Unpickler._new_object,
    "BUILD": Unpickler._build,
    "BINPERSID": lambda machine, _: machine._stack.append(machine._persistent(machine._stack.pop())),
}
