"""What the pipelines talk to: the store, and the machine that computes."""
