"""Captions: NoCaps and Flickr30K."""

from qwen_vl.evaluation import submissions
from qwen_vl.evaluation.metrics.cider import CAPTION_CIDER
from qwen_vl.evaluation.readers import annotations, hugging_face
from qwen_vl.evaluation.records import Decoding

from .benchmark import Benchmark, DataFile
from .files import converted, hub, training

CAPTION = Decoding(max_new_tokens=30, min_new_tokens=8)

CAPTIONS = (
    Benchmark(
        name="nocaps",
        title="NoCaps (val)",
        files={
            "records": converted("nocaps/nocaps_val.json"),
            "domains": DataFile(
                "data/nocaps/nocaps_val_4500_captions.json",
                "for figures by domain: download https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json",
                optional=True,
            ),
        },
        reader=annotations.captions,
        template="caption",
        decoding=CAPTION,
        metric=CAPTION_CIDER,
        size=4500,
        layouts=(hub("NoCaps", hugging_face.captions, split="validation"),),
        published={"Qwen-VL": 121.4, "Qwen-VL-Chat": 120.2},
        submission=submissions.captions,
    ),
    Benchmark(
        name="flickr",
        title="Flickr30K (Karpathy test)",
        files={
            "records": converted("flickr30k/flickr30k_karpathy_test.json"),
            "shots": training("flickr30k/flickr30k_karpathy_train.json"),
        },
        reader=annotations.captions,
        template="caption",
        decoding=CAPTION,
        metric=CAPTION_CIDER,
        size=1000,
        layouts=(hub("flickr30k", hugging_face.captions, split="test"),),
        published={"Qwen-VL": 85.8, "Qwen-VL-Chat": 81.0},
        submission=submissions.captions,
        shots_reader=annotations.caption_shots,
    ),
)
