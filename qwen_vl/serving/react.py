"""Functions as the model was trained to call them: the rules of the original's `openai_api.py`, without a server.

The model thinks, acts and observes in plain text ("ReAct"). `to_query` writes the messages of a request as such text,
`to_choice` reads an answer. Every string here is part of the contract with the weights, to the byte.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

TOOL = (
    "{name_for_model}: Call this tool to interact with the {name_for_human} API. What is the {name_for_human} API "
    "useful for? {description_for_model} Parameters: {parameters}"
)
INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
DEFAULT_SYSTEM = "You are a helpful assistant."
DUMMY_THOUGHT = "\nThought: I now know the final answer.\nFinal answer: "
DUMMY_THOUGHT_ZH = "\nThought: 我会作答了。\nFinal answer: "
CJK = re.compile("[\u4e00-\u9fff]")
ACTION, ACTION_INPUT, OBSERVATION = "\nAction:", "\nAction Input:", "\nObservation:"
# The instruction writes the first, the dummy thoughts the second; a model may have learned either.
FINAL_ANSWER = re.compile("\nFinal [Aa]nswer: ")
STOP_WORD = "Observation:"

NO_USER = "Invalid request: Expecting at least one user message."
USER_FIRST = "Invalid request: Expecting role user before role assistant."
ASSISTANT_FIRST = "Invalid request: Expecting role assistant before role function."
NOT_ALTERNATING = "Invalid request: Expecting exactly one user (or function) role before every assistant role."
ODD_NUMBER = "Invalid request"

Parts = tuple[Any, ...]  # of a user's message: strings, and images, which are passed on unseen


class ReactError(ValueError):
    """An error 400: the messages of a request do not make a conversation."""


class Call(NamedTuple):
    """A call of a function: its name, and its arguments as the model wrote them, JSON or not."""

    name: str
    arguments: str


class Turn(NamedTuple):
    """A message of a request. Only a user's may hold images next to strings; None stands for an empty content."""

    role: Literal["system", "user", "assistant", "function"]
    content: str | Parts | None
    call: Call | None = None


class Query(NamedTuple):
    """A question with its history of (question, answer) pairs; without a question the last answer is continued."""

    query: Parts | None
    history: list[tuple[Parts, str]]


class Choice(NamedTuple):
    """An answer as a client gets it: its text and, if the model calls a function, the call."""

    content: str
    call: Call | None = None


class _Written(NamedTuple):
    role: str  # "user" or "assistant"
    parts: Parts


def to_query(turns: Sequence[Turn], functions: Sequence[Mapping[str, Any]] = ()) -> Query:
    """Return the Query that the messages of a request make, with `functions` described in front of a question.

    Raise ReactError for an order of roles that is no conversation.
    """
    if not any(turn.role == "user" for turn in turns):
        raise ReactError(NO_USER)
    system = ""
    if turns[0].role == "system":
        system = _text(_stripped(turns[0].content))
        system = "" if system == DEFAULT_SYSTEM else system
        turns = turns[1:]
    if functions:
        system = f"{system}\n\n{instruction(functions)}".lstrip("\n").rstrip()
    written = _write(turns, has_functions=bool(functions))
    query = None
    if written[-1].role == "user":
        query = written.pop().parts
    history = _pairs(written)
    if system and history:
        asked, answered = history[-1]
        history[-1] = (_joined(f"{system}\n\nQuestion: ", asked), answered)
    elif system and query is not None:
        query = _joined(f"{system}\n\nQuestion: ", query)
    return Query(query, history)


def instruction(functions: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that tells the model which functions there are and how to call one."""
    described, names = [], []
    for function in functions:
        name, description = function.get("name") or "", function.get("description") or ""
        names.append(function.get("name_for_model", name))
        described.append(
            TOOL.format(
                name_for_model=names[-1],
                name_for_human=function.get("name_for_human", name),
                description_for_model=function.get("description_for_model", description),
                parameters=json.dumps(function.get("parameters") or {}, ensure_ascii=False),
            )
        )
    return INSTRUCTION.format(tools="\n\n".join(described), names=", ".join(names))


def _write(turns: Sequence[Turn], *, has_functions: bool) -> list[_Written]:
    """Return the messages after the system message as user and assistant turns."""
    written: list[_Written] = []
    for index, turn in enumerate(turns):
        content = _stripped(turn.content)
        if turn.role == "user":
            written.append(_Written("user", content))
        elif turn.role == "function":
            if not written or written[-1].role != "assistant":
                raise ReactError(ASSISTANT_FIRST)
            observation = f"\nObservation: {_text(content)}"
            if index == len(turns) - 1:
                observation += "\nThought:"
            written[-1] = _Written("assistant", (_text(written[-1].parts) + observation,))
        elif turn.role == "assistant":
            if not written:
                raise ReactError(USER_FIRST)
            before = written[-1]
            is_chinese = CJK.search(_text(before.parts)) is not None
            answer = _answer(_text(content), turn.call, has_functions=has_functions, is_chinese=is_chinese)
            if before.role == "user":
                written.append(_Written("assistant", _stripped(answer)))
            else:
                written[-1] = _Written("assistant", (_text(before.parts) + answer,))
        else:
            raise ReactError(f"Invalid request: Incorrect role {turn.role}.")
    return written


def _answer(content: str, call: Call | None, *, has_functions: bool, is_chinese: bool) -> str:
    """Return an assistant's message with the thought or the call that belongs to it."""
    if call is None:
        thought = DUMMY_THOUGHT_ZH if is_chinese else DUMMY_THOUGHT
        return thought + content if has_functions else content
    if not content:
        content = f"Thought: 我可以使用 {call.name} API。" if is_chinese else f"Thought: I can use {call.name}."
    return f"\n{content}\nAction: {call.name}\nAction Input: {call.arguments}"


def _pairs(written: Sequence[_Written]) -> list[tuple[Parts, str]]:
    """Return user and assistant turns as pairs. A dummy thought in front of a call is left out."""
    if len(written) % 2:
        raise ReactError(ODD_NUMBER)
    history = []
    for user, assistant in zip(written[::2], written[1::2], strict=True):
        if user.role != "user" or assistant.role != "assistant":
            raise ReactError(NOT_ALTERNATING)
        answered = _text(_stripped(assistant.parts))
        for thought in (DUMMY_THOUGHT, DUMMY_THOUGHT_ZH):
            if "\nAction: " in answered:
                answered = answered.removeprefix(thought.lstrip("\n"))
        history.append((_stripped(user.parts), answered))
    return history


def _stripped(content: str | Parts | None) -> Parts:
    """Return parts without newlines on the left and white space on the right of the whole."""
    parts = list((content,) if isinstance(content, str) else content or ())
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip("\n")
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return tuple(parts)


def _text(parts: Parts) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _joined(text: str, parts: Parts) -> Parts:
    """Return parts with a text in front."""
    if parts and isinstance(parts[0], str):
        return (text + parts[0], *parts[1:])
    return (text, *parts)


# ---- answers --------------------------------------------------------------------------------------------------------


def to_choice(answer: str) -> Choice:
    """Return the Choice of an answer that was given with functions: the last call in it, else its final answer."""
    action, action_input = answer.rfind(ACTION), answer.rfind(ACTION_INPUT)
    if 0 <= action < action_input:
        start = action_input + len(ACTION_INPUT)
        end = answer.rfind(OBSERVATION, start)
        name = answer[action + len(ACTION) : action_input].strip()
        if name:
            return Choice(answer[:action], Call(name, answer[start : end if end >= 0 else len(answer)].strip()))
    finals = list(FINAL_ANSWER.finditer(answer))
    return Choice(answer[finals[-1].end() :] if finals else answer)


def stop_words(words: Sequence[str], *, has_functions: bool) -> list[str]:
    """Return the stop words of a request, each also without its leading newlines, and with functions "Observation:"."""
    found = list(words)
    for word in words:
        bare = word.lstrip("\n")
        if bare and bare not in found:
            found.append(bare)
    if has_functions and STOP_WORD not in found:
        found.append(STOP_WORD)
    return found


def cut(answer: str, words: Sequence[str]) -> str:
    """Return an answer up to the first occurrence of each word in turn."""
    for word in words:
        place = answer.find(word)
        if place >= 0:
            answer = answer[:place]
    return answer
