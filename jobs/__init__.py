"""What `ray job submit` runs: parse, load the recipe, call one function."""
