"""Probe tasks: labels from the examples, control tasks, values of a table."""
