"""Label formats that can be written, one per file; the file is named like the format."""
