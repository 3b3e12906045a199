"""HTTP service: requests are batched, run through networks and answered with JSON."""
