"""The cases of `benchmarks.quality`: a data set, the pipeline that learns it, and the bar."""
