"""Data sets downloaded on request: `download:` of data YAMLs, archives and array files."""
