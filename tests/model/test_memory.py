"""Turns of a conversation with a memory: the answers of one without, and only what is new is computed."""

import shutil

import pytest

from qwen_vl.model import QWenLMHeadModel, QWenTokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


@pytest.fixture
def model(make_checkpoint, tokenizer):
    """A tiny model that writes neither tags nor markers."""
    model = QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()
    model.generation_config.suppress_tokens = sorted(set(tokenizer.special_tokens.values()) - {tokenizer.im_end_id})
    return model


@pytest.fixture
def computed(model):
    """[tokens of each decoder pass], [pictures of each pass of the vision tower], growing while the model is used."""
    tokens, pictures = [], []
    hooks = [
        model.transformer.ln_f.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1])),
        model.transformer.visual.register_forward_pre_hook(lambda module, args: pictures.append(len(args[0]))),
    ]
    yield tokens, pictures
    for hook in hooks:
        hook.remove()


def converse(model, tokenizer, queries, memory, stream=False):
    history = []
    for query in queries:
        if stream:
            *_, answer = model.chat_stream(tokenizer, query, history=history, memory=memory, **GREEDY)
            history = [*history, (query, answer.strip())]
        else:
            _, history = model.chat(tokenizer, query, history=history, memory=memory, **GREEDY)
    return history


@pytest.mark.parametrize("stream", [False, True])
def test_turns_compute_only_what_is_new(stream, model, tokenizer, in_golden_dir, computed):
    tokens, pictures = computed
    shown = "Picture {}: <img>images/{}</img>\nWhat?".format
    queries = [shown(1, "rgb.png"), "And now?", shown(2, "photo.jpg") + shown(3, "rgb.png")]
    plain = converse(model, tokenizer, queries, memory=None, stream=stream)
    without = sum(tokens), sum(pictures)
    tokens.clear(), pictures.clear()
    memory = model.new_memory()
    assert converse(model, tokenizer, queries, memory, stream) == plain
    assert pictures == [1, 1] and without[1] == 5
    assert sum(tokens) < without[0] - 2 * model.config.image_span_tokens
    # Another conversation shares the system message, the pictures, and nothing else.
    tokens.clear(), pictures.clear()
    other = [shown(1, "photo.jpg")]
    assert converse(model, tokenizer, other, memory) == converse(model, tokenizer, other, None)
    assert pictures == [1]  # by the conversation without memory


def test_a_picture_is_known_by_its_content(model, tokenizer, in_golden_dir, tmp_path, computed):
    name, memory = tmp_path / "x.png", model.new_memory()
    query = f"<img>{name}</img>What?"
    for content in ("rgb.png", "palette.png"):  # the same ids twice
        shutil.copy(f"images/{content}", name)
        answer, _ = model.chat(tokenizer, query, memory=memory, **GREEDY)
        assert answer == model.chat(tokenizer, query, **GREEDY)[0]
    assert len(memory.features) == 2
    memory.max_pictures = 1
    model.chat(tokenizer, "<img>images/photo.jpg</img>", memory=memory, **GREEDY)
    assert len(memory.features) == 1


def test_nothing_is_reused_beyond_the_trained_length(model, tokenizer, computed):
    """There every key turns with the length of the prompt."""
    model.config.seq_length = 64
    queries, memory = ["Say something long. " * 6, "More!", "Hi"], model.new_memory()
    plain = converse(model, tokenizer, queries, memory=None)
    computed[0].clear()
    assert converse(model, tokenizer, queries, memory) == plain
    assert memory.cache is None
    short, _ = model.chat(tokenizer, "Hi", memory=memory, **GREEDY)  # after a prompt with another alpha
    assert short == model.chat(tokenizer, "Hi", **GREEDY)[0]


def test_beams_reuse_pictures_alone_and_errors_forget_turns(model, tokenizer, in_golden_dir, computed):
    memory, query = model.new_memory(), "<img>images/rgb.png</img>What?"
    plain, _ = model.chat(tokenizer, query, num_beams=2, **GREEDY)
    computed[1].clear()
    for _ in range(2):
        assert model.chat(tokenizer, query, memory=memory, num_beams=2, **GREEDY)[0] == plain
    assert computed[1] == [1] and memory.cache is None
    model.chat(tokenizer, query, memory=memory, **GREEDY)
    assert memory.ids
    with pytest.raises(ValueError, match="not used by the model"):
        model.chat(tokenizer, query, memory=memory, no_such_option=1)
    assert not memory.ids
    stream = model.chat_stream(tokenizer, query, memory=memory, do_sample=False, max_new_tokens=200)
    next(stream), stream.close()  # an answer that nobody waits for is remembered as far as it came
    full = model.chat(tokenizer, query, **GREEDY)[0]
    assert model.chat(tokenizer, query, memory=memory, **GREEDY)[0] == full


def test_a_span_that_the_model_wrote_is_no_picture(model, tokenizer):
    """Ids of an answer that look like a picture carry no features: a later prompt with them computes the picture."""
    memory = model.new_memory()
    ids, references = tokenizer.encode_message("<img>images/rgb.png</img>What?")
    memory.ids = list(ids)
    assert memory.common(model.config, [*ids, 1], ["digest"]) == (0, 0)
    memory.digests = ["digest"]
    assert memory.common(model.config, [*ids, 1], ["digest"]) == (len(ids), 1)
    assert memory.common(model.config, ids[:12], ["digest"]) == (0, 0)
    assert memory.common(model.config, [*ids, 1], ["another"]) == (0, 0) and references
