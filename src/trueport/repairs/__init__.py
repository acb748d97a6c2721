"""Mending a wrong model in its own format: rules propose edits, a gate on inputs that no rule saw accepts them."""
