"""One generated data set per file; `prepare.ensure` writes the one that a data YAML asks for."""
