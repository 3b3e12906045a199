"""Tar shards: samples in tar files, read in place by offset."""
