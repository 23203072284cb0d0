"""Other sets of parameters, and what builds with one of them beside the usual build."""
