"""Layouts of semantic data sets, one per file."""
