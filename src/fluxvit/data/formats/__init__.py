"""Readers of the lists and annotation files in which data sets come."""
