"""Independent pieces of work, done in this process, in several, or on a Ray cluster, with the same results."""
