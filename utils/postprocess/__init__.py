"""One post-processing per file, found by name."""

from utils.core.contracts import PostProcess
from utils.core.registry import Registry

POSTPROCESS: Registry[type[PostProcess]] = Registry("post-processing", "utils.postprocess")
