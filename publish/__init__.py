"""Gated artifacts to ``models/published``."""
