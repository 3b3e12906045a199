"""Old name of benchmark.py, with the same options."""

from utils.core.cli import run_script, to_settings
from utils.programs.benchmark import BenchmarkSettings, benchmark_formats, benchmark_parser

if __name__ == "__main__":
    run_script(lambda: benchmark_formats(to_settings(BenchmarkSettings, benchmark_parser(__doc__).parse_args())))
