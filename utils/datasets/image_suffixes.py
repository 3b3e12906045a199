"""Suffixes of image files."""

# YOLOv5's formats, and AVIF and HEIF, which browsers and phones write
IMAGE_SUFFIXES = frozenset(
    ".bmp .dng .jpeg .jpg .mpo .png .tif .tiff .webp .pfm .avif .heic .heif".split()  # noqa: SIM905
)
