"""Training runs, one module for each kind."""
