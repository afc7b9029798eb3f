"""Reports of evaluations: one HTML page that needs no network, its figures as files, and a table."""
