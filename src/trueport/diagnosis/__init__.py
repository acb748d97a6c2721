"""Says where, how and why a converted model is wrong."""
