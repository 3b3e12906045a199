"""Folder of the service in YOLOv5; serve.py replaces it."""
