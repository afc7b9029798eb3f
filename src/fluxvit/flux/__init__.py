"""The idea of the paper: grids, token selection, cost and budgets. Imports nothing else of the package."""
