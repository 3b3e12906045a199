"""Programs beside training: dataset checks, converters, the HTTP service, hyperparameter search, pruning."""
