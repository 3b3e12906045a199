"""Taking channels out of a network: which belong together, which matter least, how many go, and the network without."""
