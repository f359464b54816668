"""What is measured, against whom: each module is a command that writes its result file.

`python -m benchmarks.pack` and `python benchmarks/pack.py` are the same: the editable install that
`make setup` does has the checkout on the path, so a script finds `benchmarks` and `tests` too.
"""
