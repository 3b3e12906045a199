"""Version of the package, written into checkpoints and exported files; equal to the one in pyproject.toml."""

VERSION = "0.1.0"
