"""Token Optimization: the search for the best sampling of each budget."""
