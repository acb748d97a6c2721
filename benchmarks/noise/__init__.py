"""Parts of the noise floor benchmark: trials, planted faults, tables."""
