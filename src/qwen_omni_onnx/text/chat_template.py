"""Chat templates in Jinja2's sandbox, with what transformers adds to its language.

Source: ``_compile_jinja_template`` and ``render_jinja_template`` of transformers 5.23 (``utils/chat_template_utils``).
A template comes with the weights, and is not to be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qwen_omni_onnx.common.errors import UserError

__all__ = ["compile_template"]


def compile_template(source: str, where: str) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    """Return what lays out messages by a chat template, up to where the reply begins.

    Args:
        source: Source of the template.
        where: Where it comes from, for messages.

    Raises:
        UserError: The source is no template, or needs what only a tokenizer's configuration has. What is returned
            raises one if the template refuses the messages, or fails on them.
    """
    environment = _environment()
    try:
        variables = find_undeclared_variables(environment.parse(source))
        template = environment.from_string(source)
    except Exception as error:  # of Jinja2, or of Python where the template is nested too deeply for it
        raise UserError(f"{where}: cannot be read as a chat template ({_line(error)})") from None
    # Transformers hands over special tokens by name, from tokenizer_config.json, which is not published.
    tokens = sorted(name for name in variables if name.endswith("_token"))
    if tokens:
        raise UserError(f"{where}: uses {tokens[0]}, which is not known here; write the token itself in its place")

    def render(messages: Sequence[Mapping[str, Any]]) -> str:
        try:
            return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True)
        except Exception as error:  # a template is a program: it may divide by zero as well as refuse
            raise UserError(f"messages: the chat template cannot lay them out ({_line(error)})") from None

    return render


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}``: marks for training what the model itself says; rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block with a scope of its own, as in transformers: what is set inside is not seen outside.
        return nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict(...)`` without the type ``dict``, which would lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja2's ``namespace(...)``, which does not take names that could lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named `self`: a template may set a variable of that name
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _require_plain(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is: Jinja2's own filter would write it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
