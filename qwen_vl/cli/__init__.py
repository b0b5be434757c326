"""The command line: one file for each verb, with its parser and what it prints."""
