"""Tasks: the losses, and the modules that they train."""
