"""Post-processing: one file per head, found by the name of the head in `POSTPROCESS`."""

from utils.core.contracts import PostProcess
from utils.core.registry import Registry

POSTPROCESS: Registry[type[PostProcess]] = Registry("post-processing", "utils.postprocess")
