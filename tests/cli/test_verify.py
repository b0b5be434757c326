"""`qwen-vl verify`: its defaults, and a model that does not exist."""

import pytest

from qwen_vl.cli import verify


def test_defaults_and_a_missing_model(tmp_path):
    args = verify.make_parser().parse_args(["a", "b"])
    assert (args.tolerance, args.prompts, args.from_disk, args.dtype, args.device) == (None, None, False, "auto", "cpu")
    with pytest.raises(OSError, match="gone"):
        verify.main([str(tmp_path / "gone"), str(tmp_path / "gone")])
