"""One family of checks per file; each is a function from what was gathered to findings."""
