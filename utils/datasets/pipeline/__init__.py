"""Samples, augmentation, batches and the worker pool: from a label index to batches."""
