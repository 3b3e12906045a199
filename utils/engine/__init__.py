"""Loops that know no task by name: training, scoring, prediction."""
