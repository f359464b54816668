"""Honest baselines: what simple methods reach on the same samples, a module for every task."""
