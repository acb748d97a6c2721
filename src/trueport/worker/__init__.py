"""The worker: a disposable child process that does everything that touches a framework, and the pool of them."""
