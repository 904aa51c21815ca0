"""Entry points for `ray job submit`, one per command of `ray-recsys`; the JSON result is the last line printed.

Paths that a job writes to must be absolute: it runs in a temporary copy of the working directory.
"""
