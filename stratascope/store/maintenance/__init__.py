"""Verify, repair, copy and compare stores."""
