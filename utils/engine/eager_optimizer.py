"""Optimizer classes that do not import torch's compiler."""

from __future__ import annotations

import functools
import inspect

import torch

_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@functools.cache
def eager(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Derive a class whose methods are those of `kind` without the decorators for `torch.compile`.

    The decorators import the compiler at the first call, which takes two to four seconds. Only networks are compiled
    here, never the optimizer's step. Results are the same, hooks and `state_dict` included.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})
