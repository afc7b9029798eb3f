"""Search over one's own videos."""
