"""The ends of networks: what they compute, and how it becomes pixels and probabilities."""
