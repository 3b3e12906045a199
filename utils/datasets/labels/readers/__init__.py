"""One label format per file."""
