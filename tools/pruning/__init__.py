"""Structured pruning: coupled channels, their importance, the selection by cost, and the pruned network."""
