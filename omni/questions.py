"""The questions that chains are asked: texts, and recordings of known words."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError, model_validator

from omni.forms import Strict
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["QUESTIONS", "Question", "read_questions"]

QUESTIONS = Path("data/questions.json")


class Question(Strict):
    """A question.

    Attributes:
        name: Name of the question, and of the files of the replies to it.
        language: Language of question and reply as in ISO 639, such as ``en``.
        text: The question in writing; None: it is a sound alone.
        sound: Path to a recording, from the folder of the file that lists it; None: the question is a text.
        said: What is said in the recording: what is understood of it is compared with this.
    """

    name: str
    language: str
    text: str | None = None
    sound: str | None = None
    said: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Question:
        if not self.text and not self.sound:
            raise ValueError("give a text, a sound, or both")
        if bool(self.sound) != bool(self.said):
            raise ValueError("a sound comes with the words that are said in it, and only a sound does")
        if not self.name or not set(self.name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_"):
            raise ValueError("a name is made of letters, digits, - and _")
        return self


def read_questions(path: Path = QUESTIONS) -> list[Question]:
    """Return the questions of a JSON file, with paths of sounds as seen from here.

    Raises:
        UserError: The file is missing, is not a list of questions, names one twice, or a sound is not there.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no file; give a JSON file with questions")
    try:
        found = TypeAdapter(list[Question]).validate_python(artifact.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {' '.join(first['msg'].split())}") from None
    if not found:
        raise UserError(f"{path}: no question in it")
    names = [question.name for question in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: two questions are named {twice}")
    placed = [
        question.model_copy(update={"sound": str(path.parent / question.sound)}) if question.sound else question
        for question in found
    ]
    for question in placed:
        if question.sound and not Path(question.sound).is_file():
            raise UserError(f"{question.sound}: missing; {path} names it for {question.name}")
    return placed
