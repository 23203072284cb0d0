"""Sound to sound in one graph, from a published folder."""

from speech.audio_core.runtime import AudioCore, open_published

__all__ = ["AudioCore", "open_published"]
