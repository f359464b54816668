"""What each task minimizes and how its quality is measured: a module for every task."""
