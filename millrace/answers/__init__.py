"""How released models answer: a module for every task."""
