"""What each task takes from a record: a module for every task, none of which loads torch."""
