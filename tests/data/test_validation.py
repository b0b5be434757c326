"""The validator of records: each problem names its place and its cure."""

import pytest

from qwen_vl.data.conversations import read
from qwen_vl.data.validation import DataError

Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}
GOOD = {"id": "good", "conversations": [Q, A]}


def user(text):
    return {"id": "x", "conversations": [{"from": "user", "value": text}, A]}


def error_of(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("text", ["data.json[1]: a string"]),
        ({"id": 1.5, "conversations": [Q, A]}, ["(id 1.5).id: a number; use a string"]),
        ({"id": 1}, ["no 'conversations'; add"]),
        ({"id": 1, "messages": [Q, A]}, ["rename 'messages' to 'conversations'"]),
        ({"id": 1, "conversations": []}, ["conversations: use a list"]),
        ({"id": 1, "conversations": [Q, "text"]}, ["conversations[1]: a string"]),
        (
            {"id": 1, "conversations": [Q, {"role": "assistant", "content": "a"}]},
            ["rename 'role' to 'from'", "rename 'content' to"],
        ),
        (
            {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ["conversations[0].from: \"human\"; use 'user'", "conversations[1].from: \"gpt\"; use 'assistant'"],
        ),
        ({"id": 1, "conversations": [{"from": "system", "value": "q"}, Q, A]}, ["use 'user' or 'assistant'"]),
        ({"id": 1, "conversations": [{"from": ["user"], "value": "q"}, A]}, ["use 'user' or 'assistant'"]),
        ({"id": 1, "conversations": [Q, Q, A]}, ["conversations[1].from: a second 'user' turn"]),
        ({"id": 1, "conversations": [Q]}, ["nothing to learn"]),
        ({"id": 1, "conversations": [A, Q]}, ["nothing to learn"]),
        ({"id": 1, "conversations": [Q, {"from": "assistant", "value": " \n"}]}, ["conversations[1].value: empty"]),
        ({"id": 1, "conversations": [Q, {"from": "assistant", "value": None}]}, ["a null; use a string"]),
        (
            {"id": 1, "conversations": [{"from": "user", "value": [{"type": "text"}]}, A]},
            ["a list; write images into"],
        ),
        (
            {"id": 1, "image": "a.jpg", "conversations": [{"from": "user", "value": "<image>\nq"}, A]},
            ["image: images stand"],
        ),
        ({"id": 1, "system": 3, "conversations": [Q, A]}, [".system: a number; use a string"]),
        ({"id": 1, "system": "<img>", "conversations": [Q, A]}, [".system: <img> at character 0 is never closed"]),
        ({"id": 1, "weight": 0, "conversations": [Q, A]}, [".weight: 0; use a number above 0"]),
        ({"id": 1, "weight": True, "conversations": [Q, A]}, [".weight: true"]),
        ({"id": 1, "weight": float("inf"), "conversations": [Q, A]}, [".weight: Infinity"]),
        ({"id": 1, "conversations": [Q, {**A, "loss": 0}]}, ["conversations[1].loss: a number; use true or false"]),
        ({"id": 1, "conversations": [A, Q, {**A, "loss": False}]}, ['every answer has "loss": false']),
        (user("\ud83d"), ["surrogate"]),
        (user("a <img>x.png"), ["<img> at character 2 is never closed; add </img>"]),
        (user("a</ref>"), ["</ref> at character 1 closes nothing"]),
        (user("<ref>a<box>(1,2),(3,4)</box>"), ["<box> at character 6 inside <ref>"]),
        (user("<imgpad>"), ["reserved"]),
        (user("<img> </img>"), ["is empty"]),
        (
            user("<img>nowhere.png</img>"),
            ['image "nowhere.png": no such file', "Images were looked for in", "--image_folder"],
        ),
        (user("<img>ftp://host/a.png</img>"), ["use a path, http"]),
        (user("<img>http:///a.png</img>"), ["use a path, http"]),
        (user("<img>data:image/png,abc</img>"), ["use a path, http"]),
        (user("<box>(1, 2),(3,4)</box>"), ["write <box>(x1,y1),(x2,y2)</box>"]),
        (user("<box>(0.1,0.2),(0.3,0.4)</box>"), ["whole numbers from 0 to 999"]),
        (user("<box>(1,2),(3,1000)</box>"), ["coordinates go from 0 to 999"]),
        (user("<box>(-1,2),(3,4)</box>"), ["coordinates go from 0 to 999"]),
        (user("<box>(5,2),(3,4)</box>"), ["top left corner first"]),
        (user("<box>(1,5),(3,4)</box>"), ["top left corner first"]),
        (user("<quad>(1,2),(3,4),(5,6)</quad>"), ["write <quad>"]),
        (user("<quad>(1,2),(3,4),(5,6),(7,1000)</quad>"), ["coordinates go from 0 to 999"]),
    ],
)
def test_each_problem_names_its_place_and_cure(record, words, write):
    message = error_of(write([GOOD, record]))
    assert all(word in message for word in ["data.json[1]", *words]), message
    assert message.count("data.json[1]") == sum(not word.startswith(("Images", "--")) for word in words), message


def test_boxes_and_images_that_are_right(write):
    text = (
        "<ref>狗</ref><box>(0,0),(999,999)</box><box>(5,5),(5,5)</box><quad>(1,2),(3,4),(5,6),(7,0)</quad>"
        "<img>https://host/a b.png?x=1</img><img>data:image/png;base64,iVBORw0KGgo=</img>"
    )
    assert len(read(write([user(text)]))) == 1
    assert len(read(write([user("<img>nowhere.png</img>")]), check_images=False)) == 1


@pytest.mark.parametrize(
    "role, words",
    [
        (
            "system",
            "use 'user' or 'assistant'; a system message is no turn: put its text under the record's key 'system'",
        ),
        ("System", "key 'system'"),
        ("User", "use 'user'; this has capital letters"),
        ("user\u200b", "use 'user'; this has U+200B zero width space at character 4"),
        ("Human", "use 'user'"),
        ("function", "tools cannot be trained on"),
        ("teacher", "use 'user' or 'assistant'"),
    ],
)
def test_roles(role, words, write):
    assert words in error_of(write([{"conversations": [{**Q, "from": role}, Q, A]}]))


def test_keys_with_invisible_characters(write):
    path = write(
        [
            {"\ufeffconversations": [Q, A]},
            {"Conversations": [Q, A]},
            {"conversations": [{"from": "user", "value ": "q"}, A]},
        ]
    )
    message = error_of(path)
    assert "no 'conversations'; there is '\\ufeffconversations', with U+FEFF zero width no-break space at" in message
    assert "there is 'Conversations', with capital letters" in message and "there is 'value ', with capital" in message
