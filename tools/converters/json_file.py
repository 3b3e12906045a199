"""Reading of JSON files of moderate size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.core.errors import UserError


def read_json(path: Path) -> Any:
    """Read a JSON file; raises UserError with file and line if it is missing or invalid."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such JSON file")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', 1)}: not valid JSON ({str(error)[:80]})") from error
