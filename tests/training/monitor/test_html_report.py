"""The tables of report.html."""

from qwen_vl.training.monitor import html_report


def test_tables_set_columns_of_numbers_alike_and_facts_on_the_left():
    table = html_report._table(["part", "rate"], [["vit", "-"], ["decoder", "5e-05"], ["lm_head", "0"]])
    assert table.count('<td class="number">') == 3 and '<th class="number">rate' in table
    assert "number" not in html_report._table(["", ""], [["steps", "3"], ["loss", "1.5 at the end"]])
    assert "number" not in html_report._table(["flag", "value"], [["--lora_r", "8"], ["--use_lora", "True"]])
