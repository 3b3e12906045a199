"""Generated data sets, one per file; `ensure_generated` writes the one that a data YAML asks for."""

from utils.datasets.generators.prepare import ensure_generated

__all__ = ["ensure_generated"]
