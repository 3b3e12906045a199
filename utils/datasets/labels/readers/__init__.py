"""Readers of label formats, one per file."""
