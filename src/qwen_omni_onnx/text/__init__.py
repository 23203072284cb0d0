"""Conversations to tokens and back: the chat template, the tokenizer, and marks that no text may hold."""
