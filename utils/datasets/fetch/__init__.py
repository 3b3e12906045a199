"""Downloads on request: the HTTP client, archives and data sets."""
