"""A published Thinker as lm-eval takes models.

The adapter computes what lm-eval asks of a language model: the log-likelihood of a text after another, that of a whole
text, and greedy text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from omni.decoder import LOGITS_TO_KEEP
from omni.quiet import quiet
from omni.resources import progress
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import run
from qwen_omni_onnx.common.text import TOKENIZER
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.thinker import Thinker

__all__ = ["PublishedThinker", "Tasks"]

_GREEDY = Sampling(greedy=True)
_LONGEST = 2048  # tokens of a window: what perplexities are usually told for
Request = TypeVar("Request")
Scored = tuple[float, bool]  # log-likelihood of a continuation, and whether greedy text would be the same


class Tasks:
    """Tasks of lm-eval.

    Args:
        names: Names of the tasks.
        folder: Folder with tasks of the user's own, beside lm-eval's; None without.

    Raises:
        UserError: There is no such task.
    """

    def __init__(self, names: Sequence[str], folder: Path | None) -> None:
        self._names = list(names)
        self._manager = TaskManager(include_path=None if folder is None else str(folder))
        unknown = [name for name in names if not self._manager.match_tasks([name])]
        if unknown:
            raise UserError(f"{unknown[0]}: lm-eval knows no such task; lm-eval ls tasks lists those that it does")

    def judge(self, thinker: Thinker, folder: Path, limit: int | None = None) -> dict[str, dict[str, Any]]:
        """Return lm-eval's metrics of a Thinker, by task.

        Args:
            thinker: The Thinker.
            folder: Folder with its tokenizer.
            limit: Questions of each task, the first ones; None for all.
        """
        with quiet():
            found = simple_evaluate(
                model=PublishedThinker(thinker, folder),
                tasks=self._names,
                task_manager=self._manager,
                limit=limit,
                bootstrap_iters=0,
            )
        return dict(found["results"])


class PublishedThinker(TemplateLM):
    """A Thinker as lm-eval takes models.

    Args:
        thinker: The Thinker.
        folder: Folder with its tokenizer, such as its published one.
    """

    def __init__(self, thinker: Thinker, folder: Path) -> None:
        super().__init__()
        self._thinker = thinker
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    @property
    def eot_token_id(self) -> int:
        """Token that stands before a text that nothing stands before."""
        return int(min(self._thinker.special_tokens.ends))

    @property
    def max_length(self) -> int:
        """Tokens that are scored at once."""
        return min(_LONGEST, self._thinker.decoder.positions)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text; the tokenizer adds none of its own."""
        return list(self._tokenizer.encode(string, add_special_tokens=False).ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Scored]:
        return [self._score(context, continuation) for _, context, continuation in _each(requests)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows that each begin after the last one's end."""
        found = []
        for request in _each(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy text after each prompt, up to the first of the words that end it."""
        return [self._generate(*request.args) for request in _each(requests)]

    def _score(self, context: list[int], continuation: list[int]) -> Scored:
        ids = (context + continuation)[-(self.max_length + 1) :]
        asked = min(len(continuation), len(ids) - 1)
        decoder = self._thinker.decoder
        embeds = self._thinker.prompt(np.array(ids[:-1])).embeds[None]
        first = len(ids) - 1 - asked
        fed = decoder.feeds(embeds, np.ones(embeds.shape[:2]))
        fed[LOGITS_TO_KEEP] = np.arange(first, first + asked)[None]
        logits = run(decoder.session, fed)["logits"][0].astype(np.float64)
        targets = np.array(ids[-asked:])
        top = logits.max(axis=-1, keepdims=True)
        normalizer = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
        likelihood = logits[np.arange(asked), targets] - normalizer
        return float(likelihood.sum()), bool((logits.argmax(axis=-1) == targets).all())

    def _generate(self, prompt: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", 256))
        ids = np.array(self.tok_encode(prompt)[-(self._thinker.decoder.positions - most) :])
        prefilled = self._thinker.prefill(self._thinker.prompt(ids), reserve=most)
        tokens: list[int] = []
        for token in prefilled.generate(_GREEDY, max_new_tokens=most):
            tokens.append(token.id)
            text = str(self._tokenizer.decode(tokens))
            if any(word in text for word in until):
                return text[: min(text.find(word) for word in until if word in text)]
        return str(self._tokenizer.decode(tokens))


def _each(requests: Sequence[Request]) -> Iterator[Request]:
    """Yield requests, and show how many are done."""
    with progress("lm-eval", len(requests)) as advance:
        for request in requests:
            yield request
            advance(1)
