"""Attempts to make this project accept, obey or choke on what a stranger made: see ``attacks/README.md``."""
