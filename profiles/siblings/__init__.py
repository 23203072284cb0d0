"""Trained siblings: smaller models of the same layer types, whose trained weights a package index carries.

Whisper base's encoder stands in for the audio encoder, SmolLM2-135M-Instruct for the Thinker. They are laid out as a
checkpoint of Qwen2.5-Omni, so that the pipeline's own stages build, quantize and judge them as they are.
"""
