"""What is measured, against whom: each module is a command that writes its result file."""
