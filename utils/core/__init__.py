"""Foundations of all other packages: contracts, settings, processes, devices and files."""

import sys
from types import TracebackType


def _report_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line for a Ctrl-C during the imports of a program, as `run_script` does later."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


_ROOT = __file__.replace("\\", "/").removesuffix("utils/core/__init__.py")
_PROGRAM = str(getattr(sys.modules.get("__main__"), "__file__", "")).replace("\\", "/")
if _PROGRAM.startswith(_ROOT) and sys.excepthook is sys.__excepthook__:  # only in this project's own programs
    sys.excepthook = _report_interrupt
