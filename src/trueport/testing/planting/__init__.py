"""Fault planters, one per framework: `kinds(path)` and `plant(path, out, kind, seed)`, which run inside a worker."""
