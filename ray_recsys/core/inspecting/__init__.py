"""What is in a prepared set, and what is wrong with it."""
