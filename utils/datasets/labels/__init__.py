"""Label formats: readers, semantic layouts, and the scan that validates and caches them."""
