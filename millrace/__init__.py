"""The engine: how Millrace works, free of Dagster."""
