"""Pre-registered studies: checks of the stores against the plan, the run, its result."""
