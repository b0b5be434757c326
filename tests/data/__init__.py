"""Tests of qwen_vl/data. A package, because tests of other rooms have files of the same names."""
