"""Qwen-VL. Importing it changes nothing in other libraries; what commands change stands in startup.py."""
