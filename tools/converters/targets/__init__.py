"""One format that can be written per file."""
