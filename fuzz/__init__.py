"""Hostile input, made by the million: see README.md beside this file."""
