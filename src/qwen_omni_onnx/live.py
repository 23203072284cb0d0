"""A question that is heard, and read by the Thinker, while it is still being asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.positions import require_positions
from qwen_omni_onnx.reply import Reply, ReplyOptions
from qwen_omni_onnx.sound.live import LiveSound
from qwen_omni_onnx.text.chat import SYSTEM, conversation
from qwen_omni_onnx.thinker.prefix import prefix_tokens
from qwen_omni_onnx.thinker.runtime import PrefilledPrompt, PromptReader

if TYPE_CHECKING:
    from qwen_omni_onnx.bundle import Bundle

__all__ = ["LiveQuestion"]


class LiveQuestion:
    """A question whose sound comes in pieces: when it ends, its last block is all that is left to be read.

    :meth:`qwen_omni_onnx.Bundle.live_question` makes it. What comes before the sound is read at once.

    Args:
        bundle: The models.
        system: System prompt; None takes the one that speech was trained with.
        rate: Rate of the samples in Hz.
        options: How to reply.
        clock: Clock that the time of each part is added to from the end of the question on, and which begins there.

    Attributes:
        clock: Clock with the time of ``listening`` and ``thinker`` as long as the question goes on.

    Raises:
        UserError: The rate is impossible; there is no such voice; the system prompt leaves no room for a question.
    """

    def __init__(
        self, bundle: Bundle, system: str | None, rate: float, options: ReplyOptions, clock: Clock | None = None
    ) -> None:
        self._reply_clock, self.clock = clock or Clock(), Clock()
        self._reply = Reply(
            bundle, self._finish, options, self._reply_clock
        )  # first: it refuses a voice, opens nothing
        self._bundle, self._sound = bundle, LiveSound(bundle.listener, rate)
        self._system = SYSTEM if system is None else system
        self._over = False
        before, self._after = self._around(None)
        self._before, self._heard = len(before), 0  # tokens
        self._require_positions()
        thinker = bundle.thinker
        ids = np.array([*before, thinker.special_tokens.sound, *self._after])
        self._reader = PromptReader(thinker, prefix=prefix_tokens(ids, thinker.special_tokens))
        with self.clock.running("thinker"):
            self._reader.read(thinker.prompt(before))
        bundle.token2wav  # noqa: B018 - opened while nobody waits for it

    def feed(self, samples: np.ndarray) -> None:
        """Take in the next samples [samples], floating point in -1 to 1; read those blocks of 2 s that are whole.

        Raises:
            UserError: They are no such samples, or not finite; the question is too long, or over.
        """
        self._require_open()
        self._read(self.clock, self._sound.feed(samples))

    def reply(self, text: str | None = None) -> Reply:
        """End the question; return the reply to it: iterate over it for text, codes and sound as they come.

        Args:
            text: Text that follows the sound, if any.

        Raises:
            UserError: The text is not Unicode; the question is over. When the reply is iterated over: the sound is too
                short, or the question too long.
        """
        self._require_open()
        self._after = self._around(text)[1]
        self._over = True
        self._reply_clock.restart()
        return self._reply

    def _finish(self) -> PrefilledPrompt:
        """Read what is left of the sound, and what follows it."""
        clock, thinker = self._reply_clock, self._bundle.thinker
        self._read(clock, self._sound.end())
        self._require_positions()
        with clock.running("thinker"):
            self._reader.read(thinker.prompt(self._after))
        return self._reader.finish()

    def _read(self, clock: Clock, embeddings: Iterator[np.ndarray]) -> None:
        thinker = self._bundle.thinker
        for found in clock.each("listening", embeddings):
            self._heard += len(found)
            self._require_positions()
            with clock.running("thinker"):
                self._reader.read(thinker.prompt(np.full(len(found), thinker.special_tokens.sound), found))

    def _around(self, text: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens before the sound and after it, with the text that follows."""
        ids = self._bundle.chat.ids(conversation(text, 1, self._system), [1])
        (place,) = np.flatnonzero(ids == self._bundle.thinker.special_tokens.sound)
        return ids[:place], ids[place + 1 :]

    def _require_positions(self) -> None:
        tokens = self._before + self._heard + len(self._after)
        positions = (model.decoder.positions for model in (self._bundle.thinker, self._bundle.talker))
        require_positions(tokens, self._heard, *positions)

    def _require_open(self) -> None:
        if self._over:
            raise UserError("this question is over; begin another one")
