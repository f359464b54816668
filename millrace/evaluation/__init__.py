"""The evaluation: how good a checkpoint is on held-out records, and whether that is enough."""
