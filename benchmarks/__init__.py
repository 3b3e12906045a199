"""Measurement programs; README.md lists them."""
