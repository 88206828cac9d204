"""Schema migrations: at most once, detached, by the adapter of the application's tool."""
