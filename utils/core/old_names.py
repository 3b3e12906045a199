"""Programs of YOLOv5 and its forks under their old names: one line that says what replaces them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import NoReturn

from utils.core.errors import UserError

REPLACEMENTS = {  # old program -> ours
    "test.py": "val.py",
    "test_custom.py": "val.py",
    "eval.py": "val.py",
    "train_custom.py": "train.py",
    "restapi.py": "serve.py",
}
MIGRATION_PAGE = "docs/coming-from-yolov5.md"


def refuse_old_name(file: str) -> NoReturn:
    """Refuse to run a program under its old name.

    Args:
        file: `__file__` of the old program.

    Raises:
        UserError: Always; the message has the command to run instead.
    """
    name = Path(file).name
    new = REPLACEMENTS[name]
    options = "" if new == "serve.py" else shlex.join(sys.argv[1:])
    raise UserError(f"{name}: the program is {new}; run `{f'python {new} {options}'.strip()}`; see {MIGRATION_PAGE}")
