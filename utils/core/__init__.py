"""Foundations: contracts, settings, processes, devices, files. Imports nothing else of the project."""

import sys
from types import TracebackType


def _one_line_for_ctrl_c(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an interruption that comes while a program is still being loaded as `run_script` shows later ones."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


_ROOT = __file__.replace("\\", "/").removesuffix("utils/core/__init__.py")
_PROGRAM = str(getattr(sys.modules.get("__main__"), "__file__", "")).replace("\\", "/")
if _PROGRAM.startswith(_ROOT) and sys.excepthook is sys.__excepthook__:  # not where another program imports this one
    sys.excepthook = _one_line_for_ctrl_c
