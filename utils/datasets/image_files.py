"""Reading of image files of all supported formats; every fault names the file."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np

from utils.core.input_files import MAX_PIXELS
from utils.datasets.file_access import open_binary, read_binary

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
TAIL_BYTES = 4096  # cameras append padding and previews after a JPEG's end marker
_COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


class ImageFault(Exception):  # noqa: N818 - consistent with the label faults
    """Unreadable image file; the message is one line that names the file."""


class TooLargeFault(ImageFault):
    """Image with more pixels than the limit."""


@cache
def quiet_decoders() -> None:
    """Silence the messages of decoders about files that are reported here."""
    from PIL import Image

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged EXIF


@cache
def _register_heif() -> bool:
    """Register HEIF with Pillow if the optional package is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def open_header(source: Path | IO[bytes], path: Path, head: bytes, max_pixels: int) -> PilImage:
    """Open an image file with Pillow without decoding pixels.

    Args:
        source: the file, or a stream of its content.
        path: the file, for messages.
        head: its first 32 bytes.
        max_pixels: limit of the image size.

    Returns:
        The image with format, size and EXIF data.

    Raises:
        TooLargeFault: the image exceeds `max_pixels`.
        ImageFault: the file is empty, damaged or of an unknown format.
    """
    from PIL import Image

    quiet_decoders()
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not _register_heif():
        raise ImageFault(f"{path}: HEIF image; to read it, run: pip install pillow-heif")
    if not head:
        raise ImageFault(f"{path}: empty file (0 bytes)")
    try:
        image = Image.open(source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeFault(f"{path}: more than {max_pixels} pixels, refused: {_line(error)}") from error
    except (OSError, ValueError, SyntaxError, TypeError, OverflowError, EOFError) as error:
        raise ImageFault(f"{path}: not an image that can be read ({_line(error)})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeFault(f"{path}: {width} x {height} pixels, more than {max_pixels}, refused; cut it into tiles")
    if width < 1 or height < 1:
        raise ImageFault(f"{path}: empty image of {width} x {height} pixels")
    return image


def _line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "unknown format or damaged header" if "cannot identify image file" in text else text[:160]


def orientation_of(image: PilImage) -> int:
    """Read the EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        value = image.getexif().get(274, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError, EOFError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (EXIF 2.3, tag 274) to an (H, W, C) image."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels


def lacks_end(data: bytes) -> bool:
    """Check whether the last bytes of a JPEG (at least 4096) lack the end marker because the file is truncated."""
    return b"\xff\xd9" not in data[-TAIL_BYTES:]


def probe_image(path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read the size of an image from its header.

    Args:
        path: image file.
        notes: receives warnings (a JPEG without end marker).
        max_pixels: limit of the image size.

    Returns:
        (height, width) after EXIF orientation, as `read_image` returns it.

    Raises:
        ImageFault: the file is unreadable.
    """
    path = Path(path)
    try:
        with open_binary(path) as file:
            head = file.read(32)
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            tail = file.read()
            file.seek(0)
            with open_header(file, path, head, max_pixels) as image:
                orientation, (width, height) = orientation_of(image), image.size
                if notes is not None and image.format in ("JPEG", "MPO") and lacks_end(tail):
                    notes.append(f"{path}: truncated JPEG (no end marker), decoded as far as possible")
                if image.format == "PNG" and b"IEND" not in tail:
                    raise ImageFault(f"{path}: truncated PNG (no IEND)")
    except OSError as error:
        raise ImageFault(f"{path}: cannot be read ({error.strerror or error})") from error
    return (width, height) if orientation >= 5 else (height, width)


def read_image(path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file.

    Greyscale, palette, CMYK and 16-bit images are converted to three 8-bit channels, transparency is dropped, and of
    animations the first frame is read.

    Args:
        path: image file.
        notes: receives warnings about damaged but readable files.
        max_pixels: limit of the image size.

    Returns:
        (H, W, 3) uint8 BGR with EXIF orientation applied.

    Raises:
        ImageFault: the file is unreadable.
    """
    path = Path(path)
    return decode_image(read_content(path), path, notes, max_pixels)


def read_content(path: Path, kind: str = "") -> bytes:
    """Read the content of an image file.

    Args:
        path: image file.
        kind: what a missing file is called in the message.

    Raises:
        ImageFault: the file is missing or unreadable.
    """
    try:
        return read_binary(path)
    except OSError as error:
        if kind and isinstance(error, FileNotFoundError):
            raise ImageFault(f"{path}: no such {kind}") from error
        raise ImageFault(f"{path}: cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes, path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the content of the image file `path` to (H, W, 3) uint8 BGR; see `read_image`."""
    with open_header(io.BytesIO(data), path, data[:32], max_pixels) as header:
        orientation = orientation_of(header)
        if header.format in ("JPEG", "MPO") and lacks_end(data):
            if notes is not None:
                notes.append(f"{path}: truncated JPEG (no end marker), decoded as far as possible")
            data += b"\xff\xd9"  # required by OpenCV 5
        if header.format == "PNG" and b"IEND" not in data[-TAIL_BYTES:]:
            raise ImageFault(f"{path}: truncated PNG (no IEND)")
        pixels = _decode_with_opencv(data)
        if pixels is None or sorted(pixels.shape[:2]) != sorted(header.size):
            pixels = _decode_with_pillow(header, path)
    return np.ascontiguousarray(upright(pixels, orientation))


def _decode_with_opencv(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _COLOR)
    except (cv2.error, MemoryError):
        return None


def _decode_with_pillow(image: PilImage, path: Path) -> np.ndarray:
    """Decode formats that OpenCV does not support (HEIF, float TIFF, DDS)."""
    from PIL import Image

    try:
        if image.mode == "F":  # Pillow would clip at 255; scale the range of values to 0-255
            values: Any = np.nan_to_num(np.asarray(image, np.float32))
            low, high = float(values.min()), float(values.max())
            grey = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
            return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
        return np.asarray(image.convert("RGB"))[..., ::-1]
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        OverflowError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise ImageFault(f"{path}: damaged image ({_line(error)})") from error
