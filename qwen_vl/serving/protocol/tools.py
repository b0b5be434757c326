"""The tools of a request, as functions for `react`; and answers that may call one."""

import json
from typing import Any, Literal, NamedTuple

from qwen_vl.serving import react
from qwen_vl.serving.protocol import checks
from qwen_vl.serving.protocol.errors import invalid, unsupported
from qwen_vl.serving.protocol.messages import Limits

CallsAs = Literal["tool_calls", "function_call"]
CHOICES = ("none", "auto")


class Tools(NamedTuple):
    """The functions that the model may call, and the field in which a client expects a call."""

    functions: tuple[dict[str, Any], ...]
    calls_as: CallsAs


def parse_tools(body: dict[str, Any], limits: Limits) -> Tools:
    """Return the Tools of a request; none if the client chose "none".

    Raise ApiError for a wrong type, and for a choice that would force a call: the model decides by itself.
    """
    tools, functions = body.get("tools"), body.get("functions")
    if tools and functions:
        raise invalid("functions", "comes together with tools; send tools alone")
    calls_as: CallsAs = "function_call" if functions else "tool_calls"
    name = "functions" if functions else "tools"
    given = checks.items(functions or tools or [], name)
    checks.at_most(len(given), limits.max_tools, name, "functions")
    found = tuple(_function(item, f"{name}[{index}]", name) for index, item in enumerate(given))
    size = sum(len(json.dumps(function, ensure_ascii=False)) for function in found)
    checks.at_most(size, limits.max_text, name, "characters")
    names = [function["name"] for function in found]
    if len({*names}) < len(names):
        raise invalid(name, "has two functions of the same name")
    choices = [_choice(body.get(key), key) for key in ("tool_choice", "function_call")]
    return Tools(() if "none" in choices else found, calls_as)


def _function(value: Any, where: str, name: str) -> dict[str, Any]:
    """Return a function with a checked name, description and parameters."""
    function = checks.objects(value, where)
    if name == "tools":
        kind = function.get("type", "function")
        if kind != "function":
            raise invalid(f"{where}.type", f"is {checks.shown(kind)}; use function")
        where = f"{where}.function"
        function = checks.objects(function.get("function"), where)
    for key in ("name_for_model", "name_for_human", "description", "description_for_model"):
        if function.get(key) is not None:
            checks.text(function[key], f"{where}.{key}")
    if not checks.text(function.get("name"), f"{where}.name").strip() or "\n" in function["name"]:
        raise invalid(f"{where}.name", "is empty or has several lines; use a short name")
    if function.get("parameters") is not None:
        checks.objects(function["parameters"], f"{where}.parameters")
    if checks.flag(function.get("strict"), f"{where}.strict", False):
        raise unsupported(f"{where}.strict", "arguments come back as the model writes them, so check them yourself")
    return {key: item for key, item in function.items() if item is not None}


def _choice(value: Any, name: str) -> str:
    if value is None:
        return "auto"
    if isinstance(value, str) and value in CHOICES:
        return value
    if isinstance(value, dict) or value == "required":
        raise unsupported(name, "no call can be forced; use auto or none")
    raise invalid(name, f"is {checks.shown(value)}; use auto or none")


class ToolText:
    """The text of an answer that may call a function: held back until it is clear that there is no call.

    That is where a final answer begins before any action; what follows then goes out as it comes. Everything else
    waits for the end. With `waits` all text does, since a call may follow a final answer.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self._text, self._waits = "", waits
        self._is_final = False

    def push(self, new: str) -> str:
        """Return the new text that belongs to the final answer."""
        if self._is_final:
            return new
        self._text += new
        found = None if self._waits else react.FINAL_ANSWER.search(self._text)
        if not found or self._text.find(react.ACTION, 0, found.start()) >= 0:
            return ""
        self._is_final = True
        return self._text[found.end() :]

    def close(self) -> react.Choice:
        """Return the Choice in the text that was held back; without a call or text if all of it has been returned."""
        return react.Choice("") if self._is_final else react.to_choice(self._text)
