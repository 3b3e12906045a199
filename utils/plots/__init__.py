"""Plots and annotated images of data sets, batches, predictions and results."""
