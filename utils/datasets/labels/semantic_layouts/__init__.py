"""One layout of images and class maps per file."""
