"""Tokens against those that the Java tokenizer made, recorded, and (slow) against the tokenizer itself."""

import random
import shutil
from importlib.util import find_spec

import pytest

from qwen_vl.evaluation.metrics.ptb import tokenize

RECORDED = [  # what the Java tokenizer makes of it, punctuation dropped
    ("He said \"hi there\" and 'bye' and ``ok''.", "he said hi there and bye and ok"),
    ("the dogs' bowls, a '90s car, '93 and 'tis 'em", "the dogs bowls a '90s car '93 and 't is 'em"),
    ("don’t it’s CAN'T ain't shouldn't've", "do n't it 's ca n't ai n't should n't 've"),
    ("lemme gimme wanna-be gonna's wanna!", "lem me gim me wanna-be gonna 's wan na"),
    ("Jr. Sr. Inc. approx. tv. man. lb. no. five", "jr. sr. inc. approx tv man lb no five"),
    ("at 5 p.m. on Jan. 5, 2010 in the U.S.", "at 5 p.m. on jan. 5 2010 in the u.s."),
    ("J.K. Rowling, plan b. of T.V.s", "j.k. rowling plan b. of t.v.s"),
    ("vitamin D. The man", "vitamin d the man"),
    ("Mass. mass. Wash. wash. mfg.", "mass. mass wash. wash mfg."),
    ("number no., 3rd.; man.: dog.", "number no. 3rd. man. dog"),
    ("10:30am 5'10\" 6ft +5 a+1 --10 ...5 1 1/2 ½", "10:30 am 5 10 6ft +5 a +1 10 5 1 1/2 1/2"),
    ("AT&T R&B b&w a&b AT&amp;T &lt;x&gt; it&apos;s", "at&t r&b b & w a & b at&t < x > it 's"),
    ("(555) 123-4567 555-123-4567", "-lrb-555-rrb- 123-4567 555-123-4567"),
    (":) :-( :D ;p ^_^ <3 =)", ":-rrb- :--lrb- :d ;p ^_^ < 3 =-rrb-"),
    ("@user #cat #1 a_b c++ c# US$5 £5 5¢", "@user #cat # 1 a_b c++ c# us$ 5 # 5 5 cents"),
    ('<b>bold</b> <a href="x"> < b > a<3', '<b> bold </b> <a href="x"> < b > a < 3'),
    ("O'Brien o'neil l'eau c'est s'il j'ai rock 'n' roll", "o'brien o'neil l'eau c'est s il j' ai rock 'n' roll"),
    ("x/y/z a//b w/o w/ s/he and/or. -cat- e-mail", "x/y/z a / / b w/o w / s/he and/or cat e-mail"),
    ("U.S.-based 1,000-foot jan.-feb. 5-o'clock", "u.s.-based 1,000-foot jan.-feb 5-o'clock"),
    ("cat😀dog İ soft\u00adhyphen x\u200by", "cat dog i̇ softhyphen x y"),
    ("a cat.On a mat. version 3.x", "a cat.on a mat version 3.x"),
]


def odd_cases(recorded):
    (cases,) = [value for key, value in recorded.items() if key.endswith("_cases")]
    return cases


@pytest.mark.parametrize(("caption", "wanted"), RECORDED)
def test_recorded_tokens(caption, wanted):
    assert " ".join(tokenize(caption)) == wanted


def test_golden_tokens(golden):
    recorded = golden("cider_coco80.json")
    cases = [(case["in"], case["out"]) for case in odd_cases(recorded)]
    for image in recorded["pictures"]:
        captions, tokens = [image["prediction"], *image["references"]], [image["prediction_tokens"]]
        cases += zip(captions, tokens + image["reference_tokens"], strict=True)
    assert len(cases) == 13 + 5 * 80
    for caption, wanted in cases:
        assert tokenize(caption) == wanted.split(), caption


def test_an_initial_at_the_end_depends_on_the_next_caption():
    assert tokenize("plan B.", following="A man") == tokenize("plan B.", following=" The dog") == ["plan", "b"]
    assert tokenize("plan B.", following="men") == tokenize("plan B.", following="") == ["plan", "b."]
    assert tokenize("in the U.S.", following="A man") == ["in", "the", "u.s."]


def test_whatever_a_model_writes_has_tokens():
    for text in ("", " ", "\n", "...", "?", "\x00", "\ud800", "😀", "'" * 3000, "a." * 3000, "-" * 3000, "<a " * 500):
        assert all(token and token == token.lower() and not token.isspace() for token in tokenize(text)), text[:9]
    assert tokenize("") == tokenize(" .\n!") == []
    assert tokenize("red\ncar\tnow") == ["red", "car", "now"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap (pip) is not installed")
def test_thousands_of_captions_have_the_tokens_of_the_java_tool(golden, monkeypatch):
    """Each word of the recorded captions and cases in random company."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    recorded, rng = golden("cider_coco80.json"), random.Random(0)
    plain = [text for image in recorded["pictures"] for text in (image["prediction"], *image["references"])]
    odd = [caption for caption, _ in RECORDED] + [case["in"] for case in odd_cases(recorded)]
    words = [word for text in plain for word in text.split()]
    odd_words = [word for text in odd for word in text.split()]
    captions = plain + odd
    for _ in range(5000):
        few = rng.choices(odd_words, k=rng.randrange(3)) + rng.choices(words, k=8)
        captions.append(" ".join([*rng.sample(few, len(few)), "end"]))
    tokens = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    different = [
        (caption, tokens[i][0])
        for i, (caption, after) in enumerate(zip(captions, [*captions[1:], ""], strict=True))
        if tokenize(caption, after) != tokens[i][0].split()
    ]
    assert not different, (len(different), different[:10])
