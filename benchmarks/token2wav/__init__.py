"""token2wav beside its peers: every evaluation and every second of sound, at any length."""
