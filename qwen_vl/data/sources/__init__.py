"""Where records come from: files of every form, streams, and the tokenized cache."""
