"""Data sets of videos that are made by a program."""
