"""Image files of every kind give pixels or one line, never a traceback."""

import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.datasets.image_files import ImageFault, lacks_end, probe_image, read_image
from utils.datasets.labels.scan_cache import CACHE_SUFFIX

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about damaged EXIF

UNREADABLE = {
    "heif_RGB_10__128x128.heif": "pillow-heif",
    "heif_corrupted_corrupted.heic": "",
    "heif_corrupted_empty.heic": "empty file",
    "heif_truncated_truncated.heic": "",
    "bmp_b_badbitcount.bmp": "not an image",
    "bmp_b_badwidth.bmp": "refused",
    "bmp_b_shortfile.bmp": "damaged",
    "broken.png": "not an image",
    "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": "damaged",
    "decompression_bomb.gif": "refused",
    "png_decompression_dos.png": "not an image",
    "unknown_compression_method.png": "not an image",
    "zero_width.gif": "not an image",
    "SYN_zero_bytes.jpg": "empty file",
}


def test_bad_images(shared):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(p for p in (shared / "badimages").rglob("*") if p.is_file() and CACHE_SUFFIX not in p.name):
        expected = UNREADABLE.get(path.name)
        if expected is None:
            image = read_image(path)
            assert image.dtype == np.uint8
            assert image.shape == (*probe_image(path), 3), path.name
            continue
        if path.suffix in (".heif", ".heic") and expected != "empty file":
            try:
                read_image(path)
            except ImageFault as fault:
                assert str(path) in str(fault)
            continue
        with pytest.raises(ImageFault) as caught:
            read_image(path)
        text = str(caught.value)
        assert str(path) in text
        assert expected in text
        assert "\n" not in text
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after < before + 2**19  # kB; a bomb would need gigabytes


def test_exif_orientations(shared):
    folder = shared / "badimages" / "exif"
    upright = cv2.resize(read_image(folder / "Landscape_1.jpg"), (90, 60)).astype(int)
    for orientation in range(9):
        image = cv2.resize(read_image(folder / f"Landscape_{orientation}.jpg"), (90, 60)).astype(int)
        assert np.abs(image - upright).mean() < 8, orientation


def test_jpeg_decoding_matches_opencv(shared):
    for name in ("images/bus.jpg", "badimages/exif/Landscape_6.jpg"):
        assert np.array_equal(read_image(shared / name), cv2.imread(str(shared / name)))


def test_jpeg_without_end_marker(tmp_path):
    path = tmp_path / "cut.jpg"
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8))[1].tobytes()
    path.write_bytes(whole[:-2])
    assert lacks_end(path.read_bytes())
    notes: list[str] = []
    assert probe_image(path, notes) == (64, 48)
    assert read_image(path, notes).shape == (64, 48, 3)
    assert len(notes) == 2
    assert all(str(path) in note and "truncated JPEG" in note for note in notes)
    assert path.read_bytes() == whole[:-2]


def test_truncated_png(tmp_path):
    path = tmp_path / "cut.png"
    whole = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8))[1].tobytes()
    path.write_bytes(whole[: len(whole) // 2])
    for read in (probe_image, read_image):
        with pytest.raises(ImageFault, match="truncated PNG"):
            read(path)


def test_decompression_bomb_is_refused(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    for read in (probe_image, read_image):
        with pytest.raises(ImageFault, match="refused"):
            read(path)


@pytest.mark.parametrize(("suffix", "dtype", "shape"), [
    (".png", np.uint16, (12, 10, 3)), (".png", np.uint8, (12, 10)), (".png", np.uint8, (12, 10, 4)),
    (".tif", np.uint16, (12, 10)), (".bmp", np.uint8, (12, 10, 3)), (".webp", np.uint8, (12, 10, 3)),
])  # fmt: skip
def test_pixel_formats_become_uint8_rgb(tmp_path, suffix, dtype, shape):
    top = np.iinfo(dtype).max
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), np.full(shape, top, dtype))
    image = read_image(path)
    assert image.shape == (12, 10, 3)
    assert image.min() == 255


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        for read in (probe_image, read_image):
            with pytest.raises(ImageFault, match=str(path)):
                read(Path(path))
