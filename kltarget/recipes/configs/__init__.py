"""Configuration files and command lines of trainers, read as recipes; nothing in them is run.

A file becomes flat settings, its keys tell the trainer, and a table per trainer in ``keys/`` says
what each key does.
"""

from kltarget.recipes.configs._config_reading import ConfigReading, KeyRead, from_config

__all__ = ["ConfigReading", "KeyRead", "from_config"]
