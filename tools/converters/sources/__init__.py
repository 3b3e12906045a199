"""Label formats that can be read, one per file; the file is named like the format."""
