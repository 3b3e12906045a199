"""Training, validation and prediction loops, independent of the task."""
