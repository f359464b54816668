"""What is made: the Pipeline component and its assets, each thin over the engine."""

from assets.pipeline import Pipeline

__all__ = ["Pipeline"]
