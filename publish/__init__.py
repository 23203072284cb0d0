"""Stage 5: gated artifacts to ``models/published``."""
