"""Old name of `python -m models.summary`, with the same options: `python models/yolo.py --cfg yolov5s.yaml`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of models/, whose files are no top-level modules
    from models.summary import main
    from utils.core.cli import run_script

    run_script(main)
