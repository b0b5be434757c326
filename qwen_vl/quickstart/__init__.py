"""The quickstart: data from easy-vqa, a tiny model, the report. Composes the other layers."""
