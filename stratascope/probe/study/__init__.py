"""Studies: every layer, position and task of a store as independent tasks, cached and scheduled."""
