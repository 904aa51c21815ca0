"""What `ray job submit` runs: each file is one command of `ray-recsys`, whose JSON result is the last line it prints.

Paths that a job writes to must be absolute: it runs in a copy of the working directory that is thrown away.
"""
