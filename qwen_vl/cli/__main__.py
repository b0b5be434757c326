"""`python -m qwen_vl.cli VERB ..`: the command `qwen-vl` where it is not installed."""

from .main import entry

if __name__ == "__main__":
    entry()
