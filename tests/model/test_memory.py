"""Conversations with a memory: the same answers as without, while only new tokens and images are computed."""

import copy
import shutil
import threading

import pytest
import torch
from transformers import GenerationConfig

from qwen_vl.model import QWenLMHeadModel, QWenTokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint):
    return QWenTokenizer.from_pretrained(make_checkpoint())


@pytest.fixture
def model(make_checkpoint, tokenizer):
    """Return a tiny model that writes neither tags nor markers."""
    model = QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()
    model.generation_config.suppress_tokens = sorted(set(tokenizer.special_tokens.values()) - {tokenizer.im_end_id})
    return model


@pytest.fixture
def computed(model):
    """Return lists that grow while the model runs: tokens of each decoder pass, images of each vision tower pass."""
    tokens, images = [], []
    hooks = [
        model.transformer.ln_f.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1])),
        model.transformer.visual.register_forward_pre_hook(lambda module, args: images.append(len(args[0]))),
    ]
    yield tokens, images
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
    tokens, images = computed
    shown = "Picture {}: <img>images/{}</img>\nWhat?".format
    queries = [shown(1, "rgb.png"), "And now?", shown(2, "photo.jpg") + shown(3, "rgb.png")]
    plain = converse(model, tokenizer, queries, memory=None, stream=stream)
    without = sum(tokens), sum(images)
    tokens.clear(), images.clear()
    memory = model.new_memory()
    assert converse(model, tokenizer, queries, memory, stream) == plain
    assert images == [1, 1] and without[1] == 5
    assert sum(tokens) < without[0] - 2 * model.config.image_span_tokens
    # Another conversation shares the system message, the images, and nothing else.
    tokens.clear(), images.clear()
    other = [shown(1, "photo.jpg")]
    assert converse(model, tokenizer, other, memory) == converse(model, tokenizer, other, None)
    assert images == [1]  # by the conversation without memory


def test_an_image_is_known_by_its_content(model, tokenizer, in_golden_dir, tmp_path, computed):
    name, memory = tmp_path / "x.png", model.new_memory()
    query = f"<img>{name}</img>What?"
    for content in ("rgb.png", "palette.png"):  # the same ids twice
        shutil.copy(f"images/{content}", name)
        answer, _ = model.chat(tokenizer, query, memory=memory, **GREEDY)
        assert answer == model.chat(tokenizer, query, **GREEDY)[0]
    assert len(memory.features) == 2
    memory.max_images = 1
    model.chat(tokenizer, "<img>images/photo.jpg</img>", memory=memory, **GREEDY)
    assert len(memory.features) == 1


def test_nothing_is_reused_beyond_the_trained_length(model, tokenizer, computed):
    """Check it because there the rotation of every key depends on the length of the prompt."""
    model.config.seq_length = 64
    queries, memory = ["Say something long. " * 6, "More!", "Hi"], model.new_memory()
    plain = converse(model, tokenizer, queries, memory=None)
    computed[0].clear()
    assert converse(model, tokenizer, queries, memory) == plain
    assert memory.cache is None
    short, _ = model.chat(tokenizer, "Hi", memory=memory, **GREEDY)  # after a prompt with another NTK factor
    assert short == model.chat(tokenizer, "Hi", **GREEDY)[0]


def test_beams_reuse_images_alone_and_errors_forget_turns(model, tokenizer, in_golden_dir, computed):
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
    next(stream), stream.close()  # an answer whose stream is closed is remembered as far as it came
    full = model.chat(tokenizer, query, **GREEDY)[0]
    assert model.chat(tokenizer, query, memory=memory, **GREEDY)[0] == full


def test_a_span_that_the_model_wrote_is_no_image(model, tokenizer):
    """Check that ids of an answer that look like an image have no features: a later prompt computes the image."""
    memory = model.new_memory()
    ids, references = tokenizer.encode_message("<img>images/rgb.png</img>What?")
    memory.ids = list(ids)
    assert memory.common(model.config, [*ids, 1], ["digest"]) == (0, 0)
    memory.digests = ["digest"]
    assert memory.common(model.config, [*ids, 1], ["digest"]) == (len(ids), 1)
    assert memory.common(model.config, ids[:12], ["digest"]) == (0, 0)
    assert memory.common(model.config, [*ids, 1], ["another"]) == (0, 0) and references


A, B = "Tell me about the sea and its fish.", "<img>images/rgb.png</img>What is 1 + 1, and why is it so?"


def same_with_and_without(model, tokenizer, memory, query=B, **options):
    """Check that the greedy answer to a question with a memory is the one without, and return it."""
    options = {**GREEDY, **options}
    plain, _ = model.chat(tokenizer, query, **options)
    assert model.chat(tokenizer, query, memory=memory, **options)[0] == plain
    return plain


OTHER_WAYS = {
    "beams": {"num_beams": 2},
    "beams by config": {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=6, do_sample=False)},
    "several answers": {"num_return_sequences": 2, "do_sample": True},
    "no cache": {"use_cache": False},
    "another cache": {"cache_implementation": "static"},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "a chunk at a time": {"prefill_chunk_size": 8},
    "cut at once": {"max_new_tokens": 1},
    "more than ids": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_a_call_that_generates_otherwise_leaves_nothing_false(way, model, tokenizer, in_golden_dir):
    options, memory = {**GREEDY, **OTHER_WAYS[way]}, model.new_memory()
    query = B if "chunk" not in way else B.removeprefix("<img>images/rgb.png</img>")  # images are not split
    model.chat(tokenizer, A, memory=memory, **GREEDY)
    answer, _ = model.chat(tokenizer, query, memory=memory, **options)
    if not options["do_sample"]:
        assert answer == model.chat(tokenizer, query, **options)[0]
    same_with_and_without(model, tokenizer, memory, query)
    same_with_and_without(model, tokenizer, memory, A)


def test_settings_of_the_model_count_as_those_of_the_call(model, tokenizer, in_golden_dir):
    memory = model.new_memory()
    model.chat(tokenizer, A, memory=memory, **GREEDY)
    model.generation_config.num_beams = 2  # `generate` takes it if the call's config does not set it
    short = GenerationConfig(max_new_tokens=4, do_sample=False)
    plain, _ = model.chat(tokenizer, B, generation_config=copy.deepcopy(short))
    assert model.chat(tokenizer, B, generation_config=short, memory=memory)[0] == plain
    model.generation_config.num_beams = 1
    same_with_and_without(model, tokenizer, memory)


def test_errors_cancelled_streams_and_other_systems_between(model, tokenizer, in_golden_dir):
    memory = model.new_memory()
    model.chat(tokenizer, B, memory=memory, **GREEDY)

    class Failing(torch.nn.Module):
        def forward(self, hidden, *args, **kwargs):
            raise RuntimeError("out of memory")

    last, model.transformer.h[1] = model.transformer.h[1], Failing()
    with pytest.raises(RuntimeError, match="out of memory"):  # after the first block has put its keys into the cache
        model.chat(tokenizer, B + " Really?", memory=memory, **GREEDY)
    model.transformer.h[1] = last
    same_with_and_without(model, tokenizer, memory)
    stream = model.chat_stream(tokenizer, A, memory=memory, do_sample=False, max_new_tokens=100)
    next(stream)
    same_with_and_without(model, tokenizer, memory)  # while the other answer is read, in the same thread
    stream.close()
    same_with_and_without(model, tokenizer, memory)
    same_with_and_without(model, tokenizer, memory, system="Be brief.")
    same_with_and_without(model, tokenizer, memory)


def add_noise(model):
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.normal_()


def change_one_number_behind_autograd(model):
    model.transformer.wte.weight.data[198] += 1  # of the newline, in every prompt


def load_others(model):
    weights = {name: torch.roll(tensor, 1, 0) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)


def step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()


def change_the_tower(model):
    model.transformer.visual.proj.data.mul_(-3)


def hook(model):
    model.transformer.h[0].register_forward_hook(lambda module, args, output: (output[0] * -2, output[1]))


def change_the_config(model):
    model.config.rotary_emb_base = 3.0


def half(model):
    model.to(torch.bfloat16)


CHANGES = [
    add_noise,
    change_one_number_behind_autograd,
    load_others,
    step,
    change_the_tower,
    hook,
    change_the_config,
    half,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_sees_nothing_of_before(change, model, tokenizer, in_golden_dir, computed):
    tokens, images = computed
    memory = model.new_memory()
    before = same_with_and_without(model, tokenizer, memory, max_new_tokens=20)
    change(model)
    plain, _ = model.chat(tokenizer, B, do_sample=False, max_new_tokens=20)
    assert plain != before or change is half, "the change shows in the answer"
    tokens.clear(), images.clear()
    assert model.chat(tokenizer, B, do_sample=False, max_new_tokens=20, memory=memory)[0] == plain
    assert tokens[0] > model.config.image_span_tokens and images == [1]
    tokens.clear(), images.clear()
    assert model.chat(tokenizer, B, do_sample=False, max_new_tokens=20, memory=memory)[0] == plain
    assert tokens[0] == 1 and images == []  # what has not changed is reused


def test_an_adapter_that_is_switched(make_checkpoint, tokenizer, in_golden_dir):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["c_attn", "in_proj", "kv_proj"], init_lora_weights=False)
    adapted = get_peft_model(QWenLMHeadModel.from_pretrained(make_checkpoint()), config)
    adapted.add_adapter("other", config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(len(name)))
    adapted.eval()
    memory, answers = adapted.new_memory(), []

    def ask():
        answers.append(same_with_and_without(adapted, tokenizer, memory, max_new_tokens=12))

    ask()
    with adapted.disable_adapter():
        ask()
    ask()
    adapted.set_adapter("other")
    ask()
    for layer in adapted.modules():
        if hasattr(layer, "scaling") and "other" in layer.scaling:
            layer.set_scale("other", 3.0)
    ask()
    adapted.merge_adapter()
    ask()
    adapted.unmerge_adapter()
    ask()
    plain = adapted.unload()
    answers.append(same_with_and_without(plain, tokenizer, memory, max_new_tokens=12))
    assert answers[0] == answers[2] != answers[1] == answers[-1] and answers[3] not in (answers[0], answers[4])


def test_a_model_in_training_mode_keeps_nothing(model, tokenizer, in_golden_dir):
    memory = model.new_memory()
    model.config.attn_dropout_prob = 0.5
    for block in model.transformer.h:
        block.attn.dropout = 0.5
    model.train()
    model.chat(tokenizer, B, memory=memory, **GREEDY)
    assert memory.cache is None and not memory.features
    model.eval()
    same_with_and_without(model, tokenizer, memory)


def test_models_and_threads_share_a_memory(model, tokenizer, make_checkpoint, in_golden_dir):
    other = QWenLMHeadModel.from_pretrained(make_checkpoint()).eval()
    add_noise(other)
    memory, wrong = model.new_memory(), []
    for each in (model, other, model):
        same_with_and_without(each, tokenizer, memory)
    jobs = [(model, B), (other, B), (model, A), (model, B + " And 2?")]
    right = [each.chat(tokenizer, query, **GREEDY)[0] for each, query in jobs]

    def ask(number):
        each, query = jobs[number]
        for _ in range(4):
            answer, _ = each.chat(tokenizer, query, memory=memory, **GREEDY)
            wrong.extend([number] if answer != right[number] else [])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    same_with_and_without(model, tokenizer, memory)


def test_a_call_with_memory_takes_no_cache_and_no_images(model, tokenizer):
    memory = model.new_memory()
    with pytest.raises(ValueError, match=r"past_key_values: chat makes this itself .* leave it out"):
        model.chat(tokenizer, A, memory=memory, past_key_values=memory.cache or object(), **GREEDY)
    with pytest.raises(ValueError, match=r"memory is a dict; pass model.new_memory\(\)"):
        model.chat(tokenizer, A, memory={}, **GREEDY)
