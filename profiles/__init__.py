"""Other sets of parameters, and the command that copies the repository to build with one of them."""
