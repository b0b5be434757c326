"""The original's rules for functions, as a table of cases: messages to a query, answers to a choice."""

import pytest

from qwen_vl.serving import react
from qwen_vl.serving.react import Call, Choice, ReactError, Turn, to_choice, to_query

TOOL = {"name": "draw", "description": "画图。", "parameters": {"type": "object", "提示": "词"}}
OTHER = {"name": "x", "name_for_model": "find", "name_for_human": "Finder", "description_for_model": "Finds {it}."}
EN = "\nThought: I now know the final answer.\nFinal answer: "
ZH = "\nThought: 我会作答了。\nFinal answer: "


def turns(*messages):
    """Return Turns of "role: content", or of (that, name, arguments) with a call; a content of "None" is None."""
    made = []
    for message in messages:
        text, *call = (message,) if isinstance(message, str) else message
        role, content = text.split(": ", 1)
        made.append(Turn(role, None if content == "None" else content, Call(*call) if call else None))
    return made


def as_text(query):
    """Return a Query with joined texts."""
    history = [("".join(asked), answered) for asked, answered in query.history]
    return None if query.query is None else "".join(query.query), history


def test_the_instruction_is_the_contract():
    assert react.instruction([TOOL, OTHER]) == (
        "Answer the following questions as best you can. You have access to the following APIs:\n\n"
        "draw: Call this tool to interact with the draw API. What is the draw API useful for? 画图。 Parameters: "
        '{"type": "object", "提示": "词"}\n\n'
        "find: Call this tool to interact with the Finder API. What is the Finder API useful for? Finds {it}. "
        "Parameters: {}\n\n"
        "Use the following format:\n\nQuestion: the input question you must answer\n"
        "Thought: you should always think about what to do\n"
        "Action: the action to take, should be one of [draw, find]\nAction Input: the input to the action\n"
        "Observation: the result of the action\n"
        "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
        "Thought: I now know the final answer\nFinal Answer: the final answer to the original input question\n\nBegin!"
    )


@pytest.mark.parametrize(
    "messages, expected",
    [
        (["user: hi"], ("hi", [])),
        (["user: \n\n  hi \n"], ("  hi", [])),
        (["user: None"], ("", [])),
        (["user: a", "assistant: \nb ", "user: c"], ("c", [("a", "b")])),
        (["user: a", "assistant: b"], (None, [("a", "b")])),
        (["user: a", "assistant: b", "assistant: c"], (None, [("a", "bc")])),
        (["user: a", "assistant: None"], (None, [("a", "")])),
        (["system: Rhyme.", "user: a"], ("Rhyme.\n\nQuestion: a", [])),
        (["system: \nYou are a helpful assistant. ", "user: a"], ("a", [])),
        (["system: None", "user: a"], ("a", [])),
        (["system: S", "user: a", "assistant: b", "user: c"], ("c", [("S\n\nQuestion: a", "b")])),
        (
            ["system: S", "user: a", "assistant: b", "user: c", "assistant: d", "user: e"],
            ("e", [("a", "b"), ("S\n\nQuestion: c", "d")]),
        ),
        (
            ["user: a", ("assistant: Let me.", "draw", '{"p": 1}'), "function: done \n"],
            (None, [("a", 'Let me.\nAction: draw\nAction Input: {"p": 1}\nObservation: done\nThought:')]),
        ),
        (
            ["user: a", ("assistant: None", "draw", ""), "function: 1", "assistant: Yes.", "user: b"],
            ("b", [("a", "Thought: I can use draw.\nAction: draw\nAction Input:\nObservation: 1Yes.")]),
        ),
        (
            ["user: 画猫", ("assistant: ", "draw", "{}"), "function: 1", "function: 2"],
            (
                None,
                [
                    (
                        "画猫",
                        "Thought: 我可以使用 draw API。\nAction: draw\nAction Input: {}\nObservation: 1"
                        "\nObservation: 2\nThought:",
                    )
                ],
            ),
        ),
    ],
)
def test_messages_without_functions(messages, expected):
    assert as_text(to_query(turns(*messages))) == expected


@pytest.mark.parametrize(
    "messages, query, history",
    [
        (["user: q"], "{I}\n\nQuestion: q", []),
        (["system: S", "user: q"], "S\n\n{I}\n\nQuestion: q", []),
        (["user: a", "assistant: b", "user: q"], "q", [("{I}\n\nQuestion: a", EN[1:] + "b")]),
        (["user: 你", "assistant: b", "user: q"], "q", [("{I}\n\nQuestion: 你", ZH[1:] + "b")]),
        (
            ["user: a", ("assistant: T", "draw", "{}"), "function: 好", "assistant: b", "user: q"],
            "q",
            [("{I}\n\nQuestion: a", "T\nAction: draw\nAction Input: {}\nObservation: 好" + ZH + "b")],
        ),
        (  # a dummy thought in front of a call goes away, and only one that leads
            ["user: a", "assistant: b", ("assistant: T", "draw", "{}"), "function: 1"],
            None,
            [
                (
                    "{I}\n\nQuestion: a",
                    "b\nT\nAction: draw\nAction Input: {}\nObservation: 1\nThought:",
                )
            ],
        ),
        (
            ["user: 一", "assistant: 二", ("assistant: T", "draw", "{}"), "function: 1"],
            None,
            [("{I}\n\nQuestion: 一", "二\nT\nAction: draw\nAction Input: {}\nObservation: 1\nThought:")],
        ),
    ],
)
def test_messages_with_functions(messages, query, history):
    text = react.instruction([TOOL])
    expected = [(asked.replace("{I}", text), answered) for asked, answered in history]
    assert as_text(to_query(turns(*messages), [TOOL])) == (query and query.replace("{I}", text), expected)


@pytest.mark.parametrize(
    "messages, error",
    [
        ([], "Invalid request: Expecting at least one user message."),
        (["system: S", "assistant: a"], "Invalid request: Expecting at least one user message."),
        (["user: a", "system: S"], "Invalid request: Incorrect role system."),
        (["system: S", "system: T", "user: a"], "Invalid request: Incorrect role system."),
        (["function: f", "user: a"], "Invalid request: Expecting role assistant before role function."),
        (["user: a", "function: f"], "Invalid request: Expecting role assistant before role function."),
        (["assistant: b", "user: a"], "Invalid request: Expecting role user before role assistant."),
        (["user: a", "user: b", "assistant: c"], "Invalid request"),
        (["user: a", "user: b"], "Invalid request"),
        (
            ["user: a", "user: b", "user: c"],
            "Invalid request: Expecting exactly one user (or function) role before every assistant role.",
        ),
    ],
)
def test_an_order_of_roles_that_is_no_conversation(messages, error):
    with pytest.raises(ReactError) as caught:
        to_query(turns(*messages))
    assert str(caught.value) == error


def test_images_of_a_user_pass_unseen():
    picture = object()
    query = to_query([Turn("system", "S"), Turn("user", (picture, " what \n"))])
    assert query.query == ("S\n\nQuestion: ", picture, " what")
    assert to_query([Turn("user", ("\n看", picture))]).query == ("看", picture)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("T\nAction: draw\nAction Input: {}\n", Choice("T", Call("draw", "{}"))),
        ("T\nAction: a\nAction Input: 1\nObservation: 2\nThought", Choice("T", Call("a", "1"))),
        (
            "\nAction: a\nAction Input: 1\nAction: b\nAction Input: 2",
            Choice("\nAction: a\nAction Input: 1", ("b", "2")),
        ),
        ("\nAction: a\nAction Input: 1\nObservation: x\nObservation: y", Choice("", ("a", "1\nObservation: x"))),
        ("T\nObservation: o\nAction: a\nAction Input: 1", Choice("T\nObservation: o", ("a", "1"))),
        ("Action: a\nAction Input: 1", Choice("Action: a\nAction Input: 1")),
        ("T\nAction: \nAction Input: 1", Choice("T\nAction: \nAction Input: 1")),
        ("T\nAction Input: 1\nAction: a", Choice("T\nAction Input: 1\nAction: a")),
        ("T\nFinal Answer: yes", Choice("yes")),
        ("T\nFinal answer: yes", Choice("yes")),
        ("T\nFinal Answer: no\nFinal answer: yes\n", Choice("yes\n")),
        ("Final Answer: yes", Choice("Final Answer: yes")),
        ("plain", Choice("plain")),
    ],
)
def test_an_answer_becomes_a_choice(answer, expected):
    assert to_choice(answer) == expected


def test_stop_words():
    assert react.stop_words(["\n\nA", "B", "\n"], has_functions=False) == ["\n\nA", "B", "\n", "A"]
    assert react.stop_words(["\nObservation:"], has_functions=True) == ["\nObservation:", "Observation:"]
    assert react.stop_words([], has_functions=True) == ["Observation:"]
    assert react.cut("one two three", ["three", "two", "x"]) == "one "
