"""The projection beside its peers: other tools, other runtimes, and what this machine can do at most."""
