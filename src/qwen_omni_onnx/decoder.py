"""Running a decoder, Thinker or Talker: a prompt in chunks, then token by token, with nothing copied.

Keys and values lie in buffers that hold more tokens than there are. The graph is given the same buffers as past and as
present keys and values, and writes the new tokens' where they belong. It gives the logits of the tokens that are asked
for: of the last one of each row, from which a reply goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.embedding import EmbeddingTable

__all__ = ["CHUNK_SIZE", "Decoder", "DecoderOutput", "DecodingSession"]

# Tokens of a prompt that the graph reads at a time. What a layer computes on the way grows with them: 4 x 19 MB of the
# Thinker's feed-forward layer, 35 MB of attention's blocks, and 0.4 GB of its scores after 15,000 tokens where ONNX
# Runtime makes them whole (28 heads x 256 x 15,000 x 4 bytes; of the whole prompt at once they would be 25 GB). A token
# takes no longer than in 512 or 1024 (on 2 cores, of a linear layer of [3584, 18944] in INT4: 0.49, 0.53 and 0.52 ms).
CHUNK_SIZE = 256
_FED = ("inputs_embeds", "attention_mask", "logits_to_keep")
_OUTPUTS = ("logits", "hidden_states")
_ROUND = 256  # tokens that a buffer's length is a multiple of


@dataclass(frozen=True)
class DecoderOutput:
    """Outputs of a decoder.

    Attributes:
        logits: Logits of the token after the last one of each row, [batch, vocabulary] float32.
        hidden: Hidden states of every new token, after the final normalization, [batch, seq, hidden] float32. Rows of
            padding hold nothing of use.
    """

    logits: np.ndarray
    hidden: np.ndarray


class Decoder:
    """A decoder's graph in stock ONNX Runtime. One serves any number of sessions, one call at a time.

    Args:
        graph: File of the graph, as this project writes it.
        positions: Positions that its tables have: ``max_position_embeddings`` of ``config.json``.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
        stop_spinning: Stop threads from spinning, where another session of the process runs between two calls: see
            :func:`qwen_omni_onnx.common.session.open_session`.

    Raises:
        UserError: The graph does not load, or has another interface.
    """

    def __init__(self, graph: Path, positions: int, threads: int = 0, *, stop_spinning: bool = False) -> None:
        self.session = open_session(graph, threads=threads, stop_spinning=stop_spinning)
        self._name = graph.name
        inputs = {port.name: port.shape for port in self.session.get_inputs()}
        outputs = {port.name: port.shape for port in self.session.get_outputs()}
        self.caches = tuple(name for name in inputs if name.startswith("past_key_values."))
        if not self.caches or not set(_FED) <= set(inputs) or not set(_OUTPUTS) <= set(outputs):
            raise UserError(
                f"{graph.name}: not a decoder with a cache and {', '.join(_FED)}; its inputs are {', '.join(inputs)}"
            )
        self.positions = positions
        self.width, self.vocabulary, self.hidden = (
            int(shape[-1]) for shape in (inputs["inputs_embeds"], outputs["logits"], outputs["hidden_states"])
        )
        _, self.kv_heads, _, self.head_dim = inputs[self.caches[0]]

    def table(self, path: Path) -> EmbeddingTable:
        """Open the embedding table that goes with the graph.

        Raises:
            UserError: The table cannot be read, or goes with another graph.
        """
        table = EmbeddingTable(path)
        if (table.vocabulary, table.width) != (self.vocabulary, self.width):
            raise UserError(f"{path}: not the embedding table of {self._name}; take both from one folder")
        return table

    def begin(self, batch: int = 1, reserve: int = 0) -> DecodingSession:
        """Return a session without tokens.

        Args:
            batch: Rows that are decoded side by side.
            reserve: Tokens of each row that the buffers hold from the beginning; they grow where more come.
        """
        return DecodingSession(self, batch, reserve)

    def forward(self, inputs_embeds: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits [batch, seq, vocabulary] and hidden states [batch, seq, hidden] of every token.

        They are zero beyond the length of a row. No keys and values are kept. This is for judging: of a long prompt,
        all logits take gigabytes.

        Args:
            inputs_embeds: Embeddings, [batch, seq, width] float32.
            tokens: Length of each row, [batch] int64; what follows is padding.

        Raises:
            UserError: Shapes do not fit.
        """
        inside = np.arange(inputs_embeds.shape[1]) < tokens[:, None]
        result = run(self.session, self.feeds(inputs_embeds, inside))
        logits, hidden = (np.where(inside[..., None], result[name], np.float32(0)) for name in _OUTPUTS)
        return logits, hidden

    def feeds(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
        """Return the graph's inputs for rows [batch, seq, width] with a mask [batch, seq] and no past.

        All logits are asked for.
        """
        batch, seq, _ = inputs_embeds.shape
        empty = np.zeros((batch, self.kv_heads, 0, self.head_dim), np.float32)
        every = np.tile(np.arange(seq), (batch, 1))
        fed = (inputs_embeds, attention_mask.astype(np.int64), every)
        return {**dict(zip(_FED, fed, strict=True)), **dict.fromkeys(self.caches, empty)}


class DecodingSession:
    """The tokens that a decoder has read, a batch of rows, with their keys and values.

    Attributes:
        lengths: Tokens of each row so far, [batch] int64.
        capacity: Tokens of a row that fit into the buffers as they are.
    """

    def __init__(self, decoder: Decoder, batch: int, reserve: int) -> None:
        self._decoder = decoder
        self._binding = decoder.session.io_binding()
        self._buffers: dict[str, np.ndarray] = {}
        self.lengths = np.zeros(batch, np.int64)
        self.capacity = 0
        self._reserve(max(1, min(reserve, decoder.positions)))

    @property
    def left(self) -> int:
        """Positions that are left for more tokens of the longest row."""
        return self._decoder.positions - int(self.lengths.max())

    def prefill(
        self,
        inputs_embeds: np.ndarray,
        attention_mask: np.ndarray | None = None,
        chunk_size: int = CHUNK_SIZE,
        hidden: np.ndarray | None = None,
    ) -> DecoderOutput:
        """Read several tokens.

        Args:
            inputs_embeds: Embeddings, [batch, seq, width] float32.
            attention_mask: 1 for tokens and 0 for padding, which must be on the right, [batch, seq]; None is all 1.
            chunk_size: Tokens of a single row that are read at a time, which bounds the memory of what is computed on
                the way. Several rows are read at once.
            hidden: Where the hidden states of a single row are written, [1, seq, hidden] float32, zeros; None makes it.

        Raises:
            UserError: Shapes do not fit, the padding is not on the right, a row has no token, there are more tokens
                than positions, or several rows go on after a past with several tokens each, which ONNX Runtime cannot
                do.
        """
        new = self._new_tokens(inputs_embeds, attention_mask)
        batch, seq, _ = inputs_embeds.shape
        if chunk_size < 1:
            raise UserError(f"chunk_size must be at least 1, not {chunk_size}")
        if batch == 1:
            if hidden is None:
                hidden = np.zeros((1, seq, self._decoder.hidden), np.float32)
            return self._prefill_one(inputs_embeds, int(new[0]), chunk_size, hidden)
        if self.lengths.any() and seq > 1:
            raise UserError(
                f"{seq} new tokens for {batch} rows with a past: run one row at a time, or step token by token"
            )
        return self._run(inputs_embeds, new)

    def step(self, inputs_embeds: np.ndarray) -> DecoderOutput:
        """Read one token for each row.

        Args:
            inputs_embeds: Embeddings, [batch, width] or [batch, 1, width] float32.

        Raises:
            UserError: The shape does not fit, or there are no positions left.
        """
        if inputs_embeds.ndim == 2:
            inputs_embeds = inputs_embeds[:, None]
        if inputs_embeds.shape[1:2] != (1,):
            raise UserError(f"a step takes one token a row, not {list(inputs_embeds.shape)}")
        return self._run(inputs_embeds, self._new_tokens(inputs_embeds, None))

    def keys_and_values(self) -> np.ndarray:
        """Return the keys and values of all tokens of a single row, [caches, heads, tokens, head] float32."""
        used = int(self.lengths[0])
        return np.stack([self._buffers[name][0, :, :used] for name in self._decoder.caches])

    def resume(self, keys_and_values: np.ndarray) -> None:
        """Go on where a single row without tokens would be after the tokens that these keys and values are of.

        Args:
            keys_and_values: What :meth:`keys_and_values` returned.

        Raises:
            UserError: They are not a decoder's like this one, or there are tokens already.
        """
        decoder = self._decoder
        tokens = keys_and_values.shape[2] if keys_and_values.ndim == 4 else 0
        wanted = (len(decoder.caches), decoder.kv_heads, tokens, decoder.head_dim)
        if keys_and_values.shape != wanted or keys_and_values.dtype != np.float32 or self.lengths.tolist() != [0]:
            raise UserError(f"keys and values are {list(keys_and_values.shape)}, not {list(wanted)}, of a row's first")
        self._reserve(tokens)
        for name, kept in zip(decoder.caches, keys_and_values, strict=True):
            self._buffers[name][0, :, :tokens] = kept
        self.lengths = np.array([tokens])

    def rewind(self, lengths: int | np.ndarray) -> None:
        """Forget the last tokens: what is read next takes their place.

        Nothing is copied. The buffers stay as they are; keys and values that are forgotten are overwritten.

        Args:
            lengths: First tokens to keep: a number for all rows, or one for each, [batch].

        Raises:
            UserError: The shape does not fit, or a row has fewer tokens.
        """
        wanted = np.asarray(lengths)
        if wanted.shape not in ((), self.lengths.shape):
            raise UserError(f"lengths are {list(wanted.shape)}, not one number, or [{len(self.lengths)}]")
        kept = np.broadcast_to(wanted, self.lengths.shape).astype(np.int64)
        for row, (length, seen) in enumerate(zip(kept, self.lengths, strict=True)):
            if not 0 <= length <= seen:
                raise UserError(f"row {row} has {seen} tokens: it cannot be cut back to {length}")
        self.lengths = kept

    def _prefill_one(
        self, inputs_embeds: np.ndarray, tokens: int, chunk_size: int, hidden: np.ndarray
    ) -> DecoderOutput:
        """Read the first ``tokens`` of a single row, without the padding that follows."""
        self._reserve(int(self.lengths[0]) + tokens)  # of all chunks, so that their keys and values are never copied
        for start in range(0, tokens, chunk_size):
            here = slice(start, min(start + chunk_size, tokens))
            output = self._run(inputs_embeds[:, here], np.array([here.stop - start]), hidden[:, here])
        return DecoderOutput(output.logits, hidden)

    def _new_tokens(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray | None) -> np.ndarray:
        """Return how many new tokens each row has, [batch]."""
        batch, width = len(self.lengths), self._decoder.width
        seq = inputs_embeds.shape[1] if inputs_embeds.ndim == 3 else 0
        if not seq or inputs_embeds.shape != (batch, seq, width):
            raise UserError(f"inputs_embeds are {list(inputs_embeds.shape)}, not [{batch}, seq, {width}]")
        if attention_mask is None:
            return np.full(batch, seq, np.int64)
        mask = np.asarray(attention_mask) != 0
        if mask.shape != (batch, seq):
            raise UserError(f"attention_mask is {list(mask.shape)}, not [{batch}, {seq}]")
        tokens = mask.sum(1)
        for row, count in enumerate(tokens):
            if not count:
                raise UserError(f"attention_mask: row {row} has no token")
            if not mask[row, :count].all():
                raise UserError(
                    f"attention_mask: row {row} is padded before its last token; put all padding on the right"
                )
        return tokens.astype(np.int64)

    def _run(self, inputs_embeds: np.ndarray, new: np.ndarray, hidden: np.ndarray | None = None) -> DecoderOutput:
        """Read new tokens; their hidden states are written into ``hidden``, which is contiguous, if it is given."""
        decoder = self._decoder
        batch, seq, _ = inputs_embeds.shape
        total = int(self.lengths.max()) + seq  # of the graph's present, padding and all
        self._reserve(total)
        lengths = self.lengths + new
        logits = np.empty((batch, 1, decoder.vocabulary), np.float32)
        if hidden is None:
            hidden = np.empty((batch, seq, decoder.hidden), np.float32)
        mask = (np.arange(total) < lengths[:, None]).astype(np.int64)
        fed = (np.ascontiguousarray(inputs_embeds, np.float32), mask, new[:, None] - 1)
        for name, array in zip(_FED, fed, strict=True):
            self._bind(name, array)
        for name, array in zip(_OUTPUTS, (logits, hidden), strict=True):
            self._bind_output(name, array)
        try:
            decoder.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises classes of its own for each status
            raise UserError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())[:300]}") from None
        self.lengths = lengths
        return DecoderOutput(logits[:, 0], hidden)

    def _reserve(self, tokens: int) -> None:
        """Let the buffers hold ``tokens`` of each row: at least twice as many as before, so that growing is rare.

        The system gives memory to what is written: what is not used yet takes none.

        Raises:
            UserError: There are not as many positions.
        """
        decoder = self._decoder
        if tokens > decoder.positions:
            raise UserError(f"{tokens} tokens are more than the {decoder.positions} positions that the decoder has")
        if tokens <= self.capacity:
            return
        capacity = min(-(-max(tokens, 2 * self.capacity) // _ROUND) * _ROUND, decoder.positions)
        shape = (len(self.lengths), decoder.kv_heads, capacity, decoder.head_dim)
        used = int(self.lengths.max())
        for name in decoder.caches:
            buffer = np.zeros(shape, np.float32)
            if used:
                buffer[:, :, :used] = self._buffers[name][:, :, :used]
            self._buffers[name] = buffer  # the old one goes before the next one comes
            self._bind(name, buffer)
            self._bind_output(name.replace("past_key_values", "present"), buffer)
        self.capacity = capacity

    def _bind(self, name: str, array: np.ndarray) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: np.ndarray) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
