"""Checks, one family per file: functions from the records of a data set to findings."""
