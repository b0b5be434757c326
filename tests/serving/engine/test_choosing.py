"""How a lane chooses the tokens of requests in one pass, each with a sampling of its own."""

from types import SimpleNamespace

import pytest
import torch

from qwen_vl.serving.engine import Engine, EngineSettings, Sampling
from qwen_vl.serving.engine.choosing import GREEDY, arguments_of

SETTINGS = EngineSettings(max_running=8, max_batch_tokens=48, page_size=16, kv_tokens=1024, num_images=2)
SCORES = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0, -1.0])


@pytest.fixture(scope="module")
def choose(make_checkpoint):
    """Return a function that returns the tokens and logarithmic probabilities of requests with these samplings."""
    lane = Engine.load(make_checkpoint(), settings=SETTINGS, name="tiny", device="cpu").lanes["tiny"]
    processors = lane.manager.logit_processor

    def call(*samplings):
        scores = torch.full((len(samplings), lane.view.config.vocab_size), -30.0)
        scores[:, : len(SCORES)] = SCORES
        asked = [arguments_of(one, vocab_size=scores.shape[1]) for one in samplings]
        states = [
            SimpleNamespace(has_new_token=True, state=SimpleNamespace(logit_processor_kwargs=one)) for one in asked
        ]
        arguments = torch.zeros(processors.tensors_required, len(samplings), dtype=torch.int32)
        processors.prepare_tensor_args(states, arguments)
        output = torch.zeros(2, 20, dtype=torch.int32)
        lane.chooser(processors(None, scores, arguments)[None], output)
        return output[0, : len(samplings)].tolist(), output[1, : len(samplings)].view(torch.float32)

    return call


def test_greedy_requests_get_the_first_of_the_best(choose):
    for samplings in ([Sampling()], [Sampling(), Sampling(2.0, top_k=1), Sampling(0.0, 0.5, 3)]):
        tokens, logprobs = choose(*samplings)
        assert tokens == [1] * len(samplings) and logprobs.tolist() == [0.0] * len(samplings)
    assert arguments_of(Sampling(0.0, 0.1, 7), vocab_size=9) == GREEDY


def test_each_request_is_sampled_as_it_asks(choose):
    """Check tokens and probabilities in a pass of all kinds, against the definitions of temperature, top-k, top-p."""
    kinds = {
        Sampling(1.0): (1.0, [0, 1, 2, 3, 4, 5]),
        Sampling(1.0, top_k=3): (1.0, [1, 3, 4]),
        Sampling(3.0, top_k=3): (3.0, [1, 3, 4]),
        Sampling(1.0, 0.7): (1.0, [1, 3]),
        Sampling(1.0, 0.9, 4): (1.0, [1, 3, 4]),
    }
    torch.manual_seed(0)
    found = {place: set() for place in range(len(kinds))}
    for _ in range(300):
        tokens, logprobs = choose(Sampling(), *kinds, Sampling())
        assert tokens[0] == tokens[-1] == 1 and logprobs[0] == logprobs[-1] == 0
        for place, (temperature, allowed) in enumerate(kinds.values()):
            token = tokens[1 + place]
            found[place].add(token)
            exact = (SCORES[allowed] / temperature).log_softmax(0)
            assert logprobs[1 + place].item() == pytest.approx(exact[allowed.index(token)].item(), abs=1e-4)
    assert [sorted(found[place]) for place in range(1, len(kinds))] == [one for _, one in [*kinds.values()][1:]]
    assert {0, 1, 2, 3, 4} <= found[0]
