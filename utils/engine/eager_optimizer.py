"""Optimizer classes that do not import torch's compiler."""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch

Kind = TypeVar("Kind", bound=type[torch.optim.Optimizer])
_DERIVED: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {}
_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def eager(kind: Kind) -> Kind:
    """Derive a class whose methods are those of `kind` without the decorators for `torch.compile`.

    The decorators import the compiler at the first call, which takes two to four seconds. Only networks are compiled
    here, never the optimizer's step. Results are the same, hooks and `state_dict` included.
    """
    if kind not in _DERIVED:
        plain = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
        members = {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))}
        _DERIVED[kind] = type(kind.__name__, (kind,), members)
    return cast("Kind", _DERIVED[kind])
