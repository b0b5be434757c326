"""Prompts, answers, chat and streaming, compared with the recorded original. Each difference is named at its case."""

import unicodedata

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from qwen_vl.model.chat_qwen import decode_answer, make_context


@pytest.fixture
def recorded(golden):
    return next(iter(golden("generate.json").values()))


def test_prompts(golden, golden_tokenizer):
    differing = []
    for number, case in enumerate(golden("make_context.json")):
        history = case["history"] and [tuple(turn) for turn in case["history"]]
        if "error" in case["out"]:
            with pytest.raises(ValueError):
                make_context(golden_tokenizer, case["query"], history, **case["kw"])
            continue
        prompt = make_context(golden_tokenizer, case["query"], history, **case["kw"])
        if prompt.ids != case["out"]["tokens"]:
            differing.append((number, case, prompt))
        else:
            assert prompt.text == case["out"]["raw_text"]
    for number, case, prompt in differing:
        # docs/checkpoint_format.md section 8:
        # the whole prompt fits the window; the original did not count the new query, so it kept more.
        window = case["kw"].get("max_window_size", 6144)
        assert len(prompt.ids) < window <= len(case["out"]["tokens"]), f"case {number}"
        assert prompt.text.endswith(case["query"] + "<|im_end|>\n<|im_start|>assistant\n")


def test_window_keeps_the_newest_turns_that_fit_and_never_cuts_the_query(golden_tokenizer):
    history = [(f"question {n}", f"answer {n}") for n in range(20)]
    before = list(history)
    full = len(make_context(golden_tokenizer, "now?", history).ids)
    fitting = make_context(golden_tokenizer, "now?", history, max_window_size=full)
    assert "question 0<" not in fitting.text and "question 1<" in fitting.text and len(fitting.ids) < full
    assert "now?" in make_context(golden_tokenizer, "now?", history, max_window_size=1).text
    assert history == before


def test_half_an_image_tag_in_a_past_answer_is_text(golden_tokenizer):
    prompt = make_context(golden_tokenizer, "and?", [("hi", "see <img>there")])
    assert golden_tokenizer.img_start_id not in prompt.ids and prompt.references == []
    assert golden_tokenizer.decode(prompt.ids) == prompt.text
    with pytest.raises(ValueError, match=r"[Uu]nclosed"):
        make_context(golden_tokenizer, "see <img>there")


WRITTEN = [
    "see <img>http://127.0.0.1:9/x.png</img>",
    "<img></img>",
    "<img>" + "long/" * 99 + "</img> and <img>/etc/passwd</img>",
    "Picture 1: <img>images/rgb.png</img> again",
    "</img><img>",
    "<imgpad> <ref>a phrase</ref><box>(1,2),(3,4)</box></img>",
    "<img><box>(1,2),(3,4)</box></img><|im_end|>",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_no_image_is_opened_for_what_no_user_wrote(text, golden_tokenizer, monkeypatch):
    opened = []
    monkeypatch.setattr("qwen_vl.model.image_loading_qwen.read_image", opened.append)
    prompt = make_context(golden_tokenizer, "and?", [("hi", text)], system=f"Rules: {text}")
    marks = {golden_tokenizer.img_start_id, golden_tokenizer.img_end_id, golden_tokenizer.img_pad_id}
    assert not marks & set(prompt.ids) and prompt.references == [] and opened == []
    assert prompt.ids.count(golden_tokenizer.box_start_id) == 2 * text.count(
        "<box>"
    )  # boxes are tokens, as in training
    assert prompt.ids.count(golden_tokenizer.im_start_id) == 5 and prompt.ids.count(golden_tokenizer.im_end_id) == 4
    assert golden_tokenizer.decode(prompt.ids) == prompt.text


def test_a_conversation_continues_after_an_answer_with_an_image_tag(golden_model, golden_tokenizer, in_golden_dir):
    options = {"do_sample": False, "max_new_tokens": 3}
    history = [("<img>images/rgb.png</img>Which?", "Like <img>http://127.0.0.1:9/x.png</img> this")]
    memory = golden_model.new_memory()
    for system in ("Be brief.", "Look at <img>gone.png</img>."):
        answer, _ = golden_model.chat(golden_tokenizer, "and?", history=history, system=system, **options)
        assert golden_model.chat(golden_tokenizer, "and?", history, system, memory=memory, **options)[0] == answer
    with pytest.raises(ValueError, match=r"gone\.png"):  # a question still names images
        golden_model.chat(golden_tokenizer, "<img>gone.png</img>", history=history, **options)


MESSAGES = [{"role": "user", "content": "My name is Ann."}, {"role": "assistant", "content": "Hello Ann."}]
PAIRS = r"pass \(question, answer\) pairs"
WRONG = {
    "history of dicts": ({"history": MESSAGES}, rf"history\[0\] is .*role.*{PAIRS}"),
    "history that is a dict": ({"history": MESSAGES[0]}, f"history is a dict; {PAIRS}"),
    "history of lists of three": ({"history": [["a", "b", "c"]]}, rf"history\[0\] .*{PAIRS}"),
    "history of strings": ({"history": [("a", "b"), "cd"]}, rf"history\[1\] is 'cd'; {PAIRS}"),
    "history that is a string": ({"history": "ab"}, PAIRS),
    "history without a question": ({"history": [(None, "b")]}, PAIRS),
    "history with a list as question": ({"history": [([{"text": "a"}], "b")]}, PAIRS),
    "history with bytes as answer": ({"history": [("a", b"b")]}, PAIRS),
    "list as query": ({"query": [{"image": "cat.jpg"}, {"text": "x"}]}, r"query is a list; .*from_list_format"),
    "messages as query": ({"query": MESSAGES}, r"query is a list; pass a string"),
    "dict as query": ({"query": {"text": "x"}}, r"query is a dict; pass a string"),
    "image as query": ({"query": Image.new("RGB", (2, 2))}, r"query is <PIL.*pass a string, in which <img>path"),
    "no query": ({"query": None}, r"query is None; pass a string"),
    "bytes as query": ({"query": b"x"}, r"query is b'x'; pass a string"),
    "number as query": ({"query": 3}, r"query is 3; pass a string"),
    "no system": ({"system": None}, r"system is None; pass a string, '' for an empty"),
    "list as system": ({"system": ["x"]}, r"system is \['x'\]; pass a string"),
    "negative window": ({"max_window_size": -1}, r"max_window_size is -1; pass a positive"),
    "no window": ({"max_window_size": 0}, r"max_window_size is 0; pass a positive"),
    "window as text": ({"max_window_size": "9"}, r"max_window_size is '9'; pass a positive"),
    "another tokenizer": ({"tokenizer": object()}, r"tokenizer is a object.*pass the QWenTokenizer"),
}
WRONG_IN_CHAT = {
    "flat stop words": ({"stop_words_ids": [151645]}, r"stop_words_ids is \[151645\]; pass .*lists of ids"),
    "stop words as text": ({"stop_words_ids": ["Human:"]}, r"stop_words_ids is \['Human:'\]; pass"),
    "a stop word as text": ({"stop_words_ids": "Human:"}, r"stop_words_ids is 'Human:'; pass"),
    "stop words of text": ({"stop_words_ids": [["Human:"]]}, r"stop_words_ids is .*pass"),
    "an empty stop word": ({"stop_words_ids": [[13], []]}, r"stop_words_ids is .*non-empty"),
    "a negative stop word": ({"stop_words_ids": [[-1]]}, r"stop_words_ids is .*pass"),
    "config as dict": ({"generation_config": {"top_p": 1}}, r"generation_config is a dict; pass a transformers\.Gen"),
}


@pytest.mark.parametrize("name", [*WRONG, *WRONG_IN_CHAT])
def test_what_cannot_be_meant_is_refused_with_what_to_pass(name, golden_model, golden_tokenizer):
    wrong, message = {**WRONG, **WRONG_IN_CHAT}[name]
    arguments = {"tokenizer": golden_tokenizer, "query": "x", **wrong}
    with pytest.raises(ValueError, match=message):
        golden_model.chat(**arguments, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        golden_model.chat_stream(**arguments, max_new_tokens=2)  # at the call, before the first step
    if name in WRONG:
        with pytest.raises(ValueError, match=message):
            make_context(**arguments)


def test_other_sequences_and_empty_ones_are_fine(golden_model, golden_tokenizer):
    as_pairs = make_context(golden_tokenizer, "x", [("a", "b"), ("c", None)], "")
    assert as_pairs == make_context(golden_tokenizer, "x", (["a", "b"], ["c", None]), "")
    for nothing in (None, [], ()):
        assert make_context(golden_tokenizer, "x", nothing).ids == make_context(golden_tokenizer, "x").ids
    options = {"do_sample": False, "max_new_tokens": 4}
    answer, _ = golden_model.chat(golden_tokenizer, "x", **options)
    for stop_words in (None, [], ((13, 9), [8])):
        assert golden_model.chat(golden_tokenizer, "x", stop_words_ids=stop_words, **options)[0] == answer


def test_answers(golden, golden_tokenizer):
    for case in golden("decode_tokens.json"):
        for chat_format in {"chatml", "raw"} & set(case):
            if "gen" not in case:
                continue
            if isinstance(case[chat_format], dict):
                # docs/checkpoint_format.md section 8: a stray <img> in a generated answer is decoded as text.
                assert decode_answer(case["gen"], golden_tokenizer, chat_format).startswith("<img>")
                continue
            answer, reason = case[chat_format]
            found = decode_answer(case["gen"], golden_tokenizer, chat_format)
            # docs/checkpoint_format.md section 8:
            # the prompt is cut by tokens (by characters there, which ate the start of some answers).
            assert found.endswith(answer)
            if found != answer:
                query = case["query"]
                assert unicodedata.normalize("NFC", query) != query and found == "RESPONSE text", reason
    im_end, eod = golden_tokenizer.im_end_id, golden_tokenizer.eod_id
    assert decode_answer([9707, 11, 1879], golden_tokenizer) == "Hello, world"  # ended by length, so nothing is dropped
    assert decode_answer([9707, eod, eod], golden_tokenizer) == "Hello"
    assert decode_answer([im_end], golden_tokenizer) == ""


def run_chat(model, tokenizer, case):
    options = dict(case["kw"])
    history = case["history_in"] and [tuple(turn) for turn in case["history_in"]]
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    return model.chat(tokenizer, case["query"], history=history, **options)


def test_chat(golden_model, golden_tokenizer, recorded, in_golden_dir):
    for case in recorded["chat"]:
        if "query" not in case or "generation_config" in case.get("kw", {}):
            continue
        if isinstance(case["response"], dict):  # the `stream` argument
            with pytest.raises(ValueError, match="chat_stream"):
                run_chat(golden_model, golden_tokenizer, case)
            continue
        turns = [tuple(turn) for turn in case["history_in"] or []]
        known = 0 if case["history_in"] is None else len(turns)
        answer, history = run_chat(golden_model, golden_tokenizer, case)
        # docs/checkpoint_format.md section 8:
        # the last token of an answer that ended by length is kept; the original dropped it;
        # the whole prompt fits the window, so less of the history may remain.
        if "max_window_size" not in case["kw"]:
            assert case["response"] in answer and len(answer) > len(case["response"])
            # docs/checkpoint_format.md section 8:
            # the prompt is cut by tokens; cut by characters, a composed letter ate the first one.
            composed = unicodedata.normalize("NFC", case["query"]) != case["query"]
            assert answer.startswith(case["response"]) or composed
        appended = case["kw"].get("append_history", True)
        assert history == turns[:known] + ([(case["query"], answer)] if appended else [])


def test_chat_does_not_touch_what_the_caller_holds(golden_model, golden_tokenizer):
    history, stop_words = [("a", "b")], [[151645]]
    config = golden_model.generation_config.to_dict()
    golden_model.chat(
        golden_tokenizer, "hi", history=history, stop_words_ids=stop_words, do_sample=False, max_new_tokens=2
    )
    assert history == [("a", "b")] and stop_words == [[151645]] and golden_model.generation_config.to_dict() == config


def test_chat_stops_at_stop_words_and_refuses_base_models(golden_model, golden_tokenizer, recorded):
    case = next(case for case in recorded["chat"] if case.get("query") == "你好")
    full, _ = golden_model.chat(golden_tokenizer, "你好", do_sample=False, max_new_tokens=16)
    ids = golden_tokenizer.encode(case["response"])
    raw = next(case for case in recorded["chat"] if "raw_generate_of_first_chat" in case)
    third = raw["raw_generate_of_first_chat"][-14]
    stopped, _ = golden_model.chat(
        golden_tokenizer, "你好", stop_words_ids=[[third]], do_sample=False, max_new_tokens=16
    )
    assert full.startswith(stopped) and len(stopped) < len(full) and ids
    base = GenerationConfig(chat_format="raw", eos_token_id=151643, pad_token_id=151643)
    with pytest.raises(ValueError, match="base model"):
        golden_model.chat(golden_tokenizer, "hi", generation_config=base)


def test_stream_grows_token_by_token(golden_model, golden_tokenizer, recorded):
    for case in recorded["chat_stream"]:
        if case["variant"] == "x" or case["kw"].get("top_p") == 0.8:  # follow "i"; one case was sampled without a seed
            continue
        options = {key: value for key, value in case["kw"].items() if key != "as_kwargs"} | case["kw"].get(
            "as_kwargs", {}
        )
        assert (
            list(golden_model.chat_stream(golden_tokenizer, case["query"], history=None, **options)) == case["yields"]
        )
    whole, _ = golden_model.chat(golden_tokenizer, "你好", do_sample=False, max_new_tokens=12)
    streamed = list(golden_model.chat_stream(golden_tokenizer, "你好", do_sample=False, max_new_tokens=12))
    assert streamed[-1].strip() == whole.replace("\N{REPLACEMENT CHARACTER}", "")


def test_an_assisted_stream_yields_every_token(golden_model, golden_tokenizer):
    options = {"do_sample": False, "max_new_tokens": 12}
    query = "你好 你好 你好 你好"
    plain = list(golden_model.chat_stream(golden_tokenizer, query, **options))
    assisted = list(golden_model.chat_stream(golden_tokenizer, query, prompt_lookup_num_tokens=3, **options))
    assert assisted == plain
    whole, _ = golden_model.chat(golden_tokenizer, query, return_dict_in_generate=True, output_scores=True, **options)
    assert whole == golden_model.chat(golden_tokenizer, query, **options)[0]


def test_stream_raises_in_the_caller_and_can_be_left(golden_model, golden_tokenizer):
    stream = golden_model.chat_stream(golden_tokenizer, "你好", do_sample=False, max_new_tokens=200)
    next(stream)
    stream.close()  # waits for the generating thread, which ends at its next token
    with pytest.raises(ValueError, match="not used by the model"):
        list(golden_model.chat_stream(golden_tokenizer, "hi", no_such_option=1, max_new_tokens=2))
    with pytest.raises(ValueError, match="no_such_picture"):
        list(golden_model.chat_stream(golden_tokenizer, "<img>no_such_picture.png</img>", max_new_tokens=2))
