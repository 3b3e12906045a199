"""Pictures from data structures."""
