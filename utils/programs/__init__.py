"""Shared parts of the command-line programs; heavy packages are loaded only after the options were parsed."""
