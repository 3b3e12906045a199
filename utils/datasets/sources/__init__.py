"""Frame sources for prediction: files, videos, cameras, streams, the screen."""
