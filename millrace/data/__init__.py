"""The data plane: source files to records to samples in zstd shards, and back as batches."""
