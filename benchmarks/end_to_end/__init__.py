"""Index and 100 queries, start to end, beside what a user would take instead. See `__main__`."""
