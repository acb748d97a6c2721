"""Results rendered: terminal, JSON, HTML. One file per form."""
