"""Old name of serve.py; says so."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.core.cli import run_script
from utils.core.old_names import refuse_old_name

if __name__ == "__main__":
    run_script(lambda: refuse_old_name(__file__))
