"""One format that can be read per file."""
