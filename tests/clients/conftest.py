"""`python/` is for another environment, and run by `make test-clients`."""

collect_ignore = ["python"]
