"""Sound files: read from anything a user has, checked, written."""
