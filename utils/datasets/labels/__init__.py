"""Label readers, the scan that validates them, and its cache."""
