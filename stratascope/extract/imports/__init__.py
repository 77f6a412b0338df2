"""Stores from activations that other programs saved."""
