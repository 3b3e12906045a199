"""Samples, augmentation, collation and loaders."""
