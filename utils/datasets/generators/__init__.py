"""One generated data set per file; `ensure` writes the one that a data YAML asks for."""

from utils.datasets.generators.prepare import ensure

__all__ = ["ensure"]
