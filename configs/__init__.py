"""The configuration: the key tree, its reader and the YAML files. ``python -m configs`` explains every key."""

from configs.defaults import get_cfg_defaults
from configs.loader import dump, load_config, load_config_with_notes, with_traits
from configs.values import ConfigError

__all__ = ["ConfigError", "dump", "get_cfg_defaults", "load_config", "load_config_with_notes", "with_traits"]
