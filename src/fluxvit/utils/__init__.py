"""Files, the system, validation and the terminal, for all other rooms."""
