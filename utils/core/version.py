"""The version that files we write name; the same as in pyproject.toml."""

VERSION = "0.1.0"
