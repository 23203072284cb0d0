"""A decoder, Thinker or Talker, beside its peers: a prompt, a step with a past, and the bytes that it reads."""
