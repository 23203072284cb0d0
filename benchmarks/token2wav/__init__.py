"""token2wav beside its peers: an evaluation of the DiT and a second of the vocoder, at any length of speech."""
