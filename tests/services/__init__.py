"""Real servers on loopback for the tests of stores, one module each."""
