"""Is there room for a reply? Thinker and Talker have so many positions for prompt and reply together."""

from __future__ import annotations

from qwen_omni_onnx.common.errors import UserError

__all__ = ["require_positions"]

_VOICE, _FIRST = 1, 1  # tokens after the prompt: the voice's own, which the Talker reads alone, and the reply's first


def require_positions(tokens: int, sound: int, thinker: int, talker: int) -> None:
    """Refuse a prompt to which no word could be spoken, before anything is computed.

    Args:
        tokens: Tokens of the prompt.
        sound: Tokens among them that stand for sound.
        thinker: Positions that the Thinker has.
        talker: Positions that the Talker has.

    Raises:
        UserError: The prompt is too long.
    """
    if tokens + _FIRST > thinker or tokens + _VOICE + _FIRST > talker:
        shorter = "sound" if 2 * sound > tokens else "text"
        raise UserError(
            f"the prompt has {tokens:,} tokens, {sound:,} of them of sound (25 a second); there are "
            f"{min(thinker, talker):,} positions, for the reply too: give a shorter {shorter}"
        )
