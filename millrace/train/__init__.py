"""The training plane: ranks that stream shards, step together and lose nothing."""
