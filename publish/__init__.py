"""Publishes artifacts that passed the gate into ``models/published``."""
