"""One generated data set per file."""
