"""Configurations: read (YAML with inheritance), check (options), build (a name and its arguments)."""

from paddle_vheat.config.build import build, build_list, building, by_name, by_type, did_you_mean, unknown_keys
from paddle_vheat.config.options import option, read_options
from paddle_vheat.config.read import load_config
from paddle_vheat.errors import ConfigError, MissingFileError

__all__ = [
    "ConfigError",
    "MissingFileError",
    "build",
    "build_list",
    "building",
    "by_name",
    "by_type",
    "did_you_mean",
    "load_config",
    "option",
    "read_options",
    "unknown_keys",
]
