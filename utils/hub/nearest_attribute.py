"""Suggestions for misspelled attributes, including the names that other libraries use."""

from __future__ import annotations

from collections.abc import Sequence

from utils.core.errors import did_you_mean

_OTHER_NAMES = {  # spellings of command lines and of other libraries
    "conf_thres": "conf",
    "conf_threshold": "conf",
    "threshold": "conf",
    "iou_thres": "iou",
    "iou_threshold": "iou",
    "nms": "iou",
    "max_detections": "max_det",
    "class_names": "names",
    "half": "amp",
}
_MIN_PREFIX = 3


def nearest_attribute(name: str, known: Sequence[str]) -> str:
    """Format the most similar attribute as the end of an error message.

    Args:
        name: The unknown name.
        known: Attributes to choose from.

    Returns:
        Text such as `; did you mean 'conf'?`, empty if nothing is similar.
    """
    lower = name.lower()
    meant = _OTHER_NAMES.get(lower)
    if meant in known:
        return f"; did you mean {meant!r}?"
    extended = [one for one in known if len(one) >= _MIN_PREFIX and (lower.startswith(one) or one.startswith(lower))]
    return f"; did you mean {extended[0]!r}?" if extended else did_you_mean(name, known)
