"""The formats of source files: a module for each family, all of which yield records."""
