"""What every part may use; imports nothing of ours. Loaded before anything else, so Ctrl-C is looked after from here."""

import os
import sys
from types import TracebackType

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _one_line_for_ctrl_c(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an interruption that came while a program was still being imported as run_script does later."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


_main = getattr(sys.modules.get("__main__"), "__file__", None)
if _main and sys.excepthook is sys.__excepthook__ and os.path.abspath(_main).startswith(_ROOT + os.sep):
    sys.excepthook = _one_line_for_ctrl_c  # only for our own programs, not for one that imports us
