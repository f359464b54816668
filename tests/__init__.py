"""The tests: each is a sentence that holds."""
