"""Image files to pixels: one reader for every format, that names the file when it cannot read it."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

# behaviour.md 4.2, and the two formats of today's phones and browsers
IMAGE_SUFFIXES = frozenset(
    ".bmp .dng .jpeg .jpg .mpo .png .tif .tiff .webp .pfm .avif .heic .heif".split()  # noqa: SIM905
)
MAX_PIXELS = 89_478_485  # 268 MB of BGR; Pillow's own limit. A 30000 x 30000 PNG of 3 MB would take 2.7 GB
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_TAIL_BYTES = 4096  # cameras append padding and previews after a JPEG's end marker
_COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


class ImageFault(Exception):  # noqa: N818 - what befell the file, as the label faults are called
    """A file that gives no image. The message is one line that names the file."""


class TooLargeFault(ImageFault):
    """An image of more pixels than are taken."""


@cache
def quiet_decoders() -> None:
    """Keep decoders from writing to the terminal about files that we report ourselves; done at the first file."""
    from PIL import Image

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged EXIF


@cache
def _register_heif() -> bool:
    """Let Pillow read HEIF if the optional package is there."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def open_header(source: Path | io.BytesIO, path: Path, head: bytes, max_pixels: int) -> PilImage:
    """Return Pillow's view of the file: format, size and EXIF are read, pixels are not."""
    from PIL import Image

    quiet_decoders()
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not _register_heif():
        raise ImageFault(f"{path}: HEIF image; to read it: pip install pillow-heif")
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
        raise ImageFault(f"{path}: an image of {width} x {height} pixels")
    return image


def _line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "unknown format or damaged header" if "cannot identify image file" in text else text[:160]


def orientation_of(image: PilImage) -> int:
    """Return the EXIF orientation, 1 to 8; 1 when there is none or it cannot be read."""
    try:
        value = image.getexif().get(274, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError, EOFError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the image as it is meant to be seen (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels


def lacks_end(data: bytes) -> bool:
    """Tell whether a JPEG's last bytes (4096 suffice) hold no end marker: it was cut short."""
    return b"\xff\xd9" not in data[-_TAIL_BYTES:]


def probe_image(path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) as `read_image` would give them, from the header alone.

    `notes` receives what is suspicious (a JPEG without its end marker). Raises ImageFault.
    """
    path = Path(path)
    try:
        if path.is_fifo():  # opening it would wait for ever
            raise ImageFault(f"{path}: a pipe, not an image")
        with path.open("rb") as file:
            head = file.read(32)
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            tail = file.read()
        with open_header(path, path, head, max_pixels) as image:
            orientation, (width, height) = orientation_of(image), image.size
            if notes is not None and image.format in ("JPEG", "MPO") and lacks_end(tail):
                notes.append(f"{path}: JPEG cut short (no end marker); what is there is used")
            if image.format == "PNG" and b"IEND" not in tail:
                raise ImageFault(f"{path}: PNG cut short (no IEND)")
    except OSError as error:
        raise ImageFault(f"{path}: cannot be read ({error.strerror or error})") from error
    return (width, height) if orientation >= 5 else (height, width)


def read_image(path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the image in `path` as (H, W, 3) uint8 BGR, EXIF orientation applied.

    Grey, palette, CMYK and 16-bit images become three 8-bit channels, transparency is dropped, of animations the first
    frame is taken. `notes` receives what was suspicious but readable. Raises ImageFault with one line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageFault(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_image(data, path, notes, max_pixels)


def decode_image(data: bytes, path: Path, notes: list[str] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the (H, W, 3) uint8 BGR image that the bytes of `path` hold; see `read_image`."""
    with open_header(io.BytesIO(data), path, data[:32], max_pixels) as header:
        orientation = orientation_of(header)
        if header.format in ("JPEG", "MPO") and lacks_end(data):
            if notes is not None:
                notes.append(f"{path}: JPEG cut short (no end marker); what is there is used")
            data += b"\xff\xd9"  # OpenCV 5 refuses it without
        if header.format == "PNG" and b"IEND" not in data[-_TAIL_BYTES:]:
            raise ImageFault(f"{path}: PNG cut short (no IEND)")
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
    """Decode what OpenCV cannot (HEIF, float TIFF, DDS)."""
    from PIL import Image

    try:
        if image.mode == "F":  # Pillow would cut off at 255; scale as a picture is meant to be seen
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
