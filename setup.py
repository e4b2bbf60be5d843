"""Lets tools that still call setup.py work; everything is declared in pyproject.toml."""

from setuptools import setup

setup()
