"""Everything the scripts share; see README.md for the map."""
