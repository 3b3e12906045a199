"""Programs beside training: dataset checks, converters, the HTTP service, hyper-parameter search, pruning."""
