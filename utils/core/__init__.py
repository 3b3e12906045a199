"""Foundations: contracts, settings, processes, devices, files. Imports nothing else of the project."""
