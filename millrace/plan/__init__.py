"""Plan, run, check: what a run will take, by what runs took, and how far off that was."""
