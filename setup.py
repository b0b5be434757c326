"""Kept for tools that still call setup.py; every fact stands in pyproject.toml."""

from setuptools import setup

setup()
