"""The configuration: fields that are saved without effect, and shapes that cannot be built."""

import json

import pytest

from qwen_vl.model import QWenConfig


def test_config_keeps_what_it_does_not_obey(tmp_path):
    settings = {"bf16": True, "use_flash_attn": "auto", "onnx_safe": None, "tokenizer_type": "QWenTokenizer", "odd": 3}
    QWenConfig(**settings).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in settings} == settings
    assert "n_queries" not in saved["visual"] and QWenConfig.from_pretrained(tmp_path).image_span_tokens == 256
    for wrong in ({"tie_word_embeddings": True}, {"scale_attn_weights": False}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}.* lm_head of its own"):
            QWenConfig(**wrong)
    with pytest.raises(ValueError, match="output_dim"):
        QWenConfig(hidden_size=128)
    with pytest.raises(ValueError, match="n_queries"):
        QWenConfig(visual={**QWenConfig().visual, "n_queries": 15})
