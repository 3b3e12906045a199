"""Detection of truncated JPEG files: decoders fill the missing part with grey, while they refuse other formats."""

from __future__ import annotations

import re

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in entropy-coded data: not a stuffed byte, restart or fill byte
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}


def jpeg_lacks_end(data: bytes) -> bool:
    """Follow the segments of a JPEG (ITU T.81, annex B) to its end marker; those of previews are inside segments.

    Args:
        data: Any file.

    Returns:
        True for a JPEG without end marker.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        if at < 0 or at + 1 >= len(data):
            return True
        marker = data[at + 1]
        if marker == _END_OF_IMAGE:
            return False
        at += 2
        if marker in _WITHOUT_LENGTH:
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        if marker == _START_OF_SCAN:
            found = _MARKER.search(data, at)
            if found is None:
                return True
            at = found.start()
