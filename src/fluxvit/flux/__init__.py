"""The method of the paper: grids, token selection, cost and budgets. Of the package it imports only utils."""
