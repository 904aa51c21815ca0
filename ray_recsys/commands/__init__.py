"""The commands of `ray-recsys`, a module for each part of the way; each is thin over one function of a stage."""
