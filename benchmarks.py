"""Old name of benchmark.py, with the same options."""

from benchmark import build_parser, main
from utils.core.cli import run_script

if __name__ == "__main__":
    run_script(lambda: main(build_parser().parse_args()))
