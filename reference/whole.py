"""Record what transformers' whole model replies to questions: ``python -m reference.whole FOLDER``.

``python -m validate speech --replies FOLDER`` compares published models with it: at full depth, the Thinker's float32
graph is not published, and PyTorch is what there is to compare with.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from omni.questions import QUESTIONS, read_questions
from omni.replies import (
    LISTENER,
    TRANSCRIBE,
    Answer,
    RecordedChain,
    RecordedReply,
    ReplyLimits,
    codes_within,
    depends_on,
    in_turn,
    record,
)
from qwen_omni_onnx.bundle import CHAIN
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sound.audio import read_audio
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from qwen_omni_onnx.voices import read_voices

if TYPE_CHECKING:
    from reference.whole_model import WholeModel

__all__ = ["main"]

_SOURCE = Path("models/source")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the replies; a run that was stopped goes on there.")],
    questions: Annotated[Path, typer.Option(metavar="FILE", help="JSON file with the questions.")] = QUESTIONS,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type of the weights, which have to fit the memory.")
    ] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed for sampling and for the initial noise.", min=0, max=2**32 - 1)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens after which a text is cut off.", min=1, max=4096)] = 128,
    max_seconds: Annotated[float, typer.Option(help="Seconds after which speech is cut off.")] = 30.0,
) -> None:
    """Record what PyTorch replies to questions, with the weights under models/source."""
    max_codes = codes_within(max_seconds)
    limits = ReplyLimits(seed, max_tokens, max_codes)
    asked = {question.name: question for question in read_questions(questions)}
    manifests = {name: artifact.fingerprint(_SOURCE / name) for name in CHAIN}
    voice = min(read_voices(_SOURCE / "token2wav" / VOICES))  # the one that a bundle speaks with
    synthetic = any(artifact.read_json(_SOURCE / name / "source.json")["kind"] == "synthetic" for name in CHAIN)

    @functools.cache
    def opened() -> WholeModel:
        from reference.whole_model import WholeModel  # takes seconds

        return WholeModel(_SOURCE, dtype)

    def reply(name: str) -> Answer:
        from reference.whole_model import WholeQuestion

        question, model = asked[name], opened()
        sound = read_audio(Path(question.sound)) if question.sound else None
        [found] = model.reply(
            [WholeQuestion(sound, question.text)],
            voice=voice,
            seed=seed,
            max_new_tokens=max_tokens,
            max_new_codes=max_codes,
            sampled=True,
        )
        transcribed = WholeQuestion(sound, TRANSCRIBE, LISTENER)
        recorded = RecordedReply(
            made_from=wanted[name],
            text=model.text(found.tokens),
            seconds=len(found.waveform) / OUTPUT_SAMPLE_RATE,
            runs_on=len(found.codes) >= max_codes and len(found.tokens) < max_tokens,
            understood=None if sound is None else model.understood(transcribed, max_tokens),
        )
        return recorded, found.waveform

    wanted = {name: depends_on(question, manifests, dtype, asdict(limits)) for name, question in asked.items()}
    record(
        folder, RecordedChain(f"PyTorch, {dtype}", synthetic, limits), wanted, in_turn(f"replies in {folder}", reply)
    )
    print(f"{folder}: {len(asked)} replies")


if __name__ == "__main__":
    run_app(app)
