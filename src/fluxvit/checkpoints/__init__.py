"""Checkpoint folders of all kinds, and the weights of others."""
