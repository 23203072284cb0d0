"""One HTML page with everything that was built and measured: ``python -m validate report``."""
