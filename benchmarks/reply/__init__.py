"""A spoken reply: time of its parts, time to the first sound, memory, and what more cores would give."""
