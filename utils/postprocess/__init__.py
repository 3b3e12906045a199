"""One post-processing per file, found by name."""

from utils.core.registry import Registry

POSTPROCESS = Registry("post-processing", "utils.postprocess")
