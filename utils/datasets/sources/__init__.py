"""Frame sources for prediction: files, videos, streams, the screen."""
