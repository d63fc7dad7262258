"""The run file: one training goal in one YAML file, parsed once into a frozen model. Imports no torch."""

from __future__ import annotations

from train_cloud.config.code import code_files
from train_cloud.config.environment import Environment
from train_cloud.config.experiment import Cell, Experiment, is_experiment, load_experiment
from train_cloud.config.fork import check_fork
from train_cloud.config.identity import PARTS, identity_changes
from train_cloud.config.initial_model import InitialModel
from train_cloud.config.load import ALIASES, dump_run_file, load_run_file, parse_overrides, parse_run_file, read_yaml
from train_cloud.config.run_file import SUPPORTED, Code, Limits, Preservation, RunFile
from train_cloud.config.search import Dimension, Search
from train_cloud.config.seeds import expand

__all__ = [
    "ALIASES",
    "PARTS",
    "SUPPORTED",
    "Cell",
    "Code",
    "Dimension",
    "Environment",
    "Experiment",
    "InitialModel",
    "Limits",
    "Preservation",
    "RunFile",
    "Search",
    "check_fork",
    "code_files",
    "dump_run_file",
    "expand",
    "identity_changes",
    "is_experiment",
    "load_experiment",
    "load_run_file",
    "parse_overrides",
    "parse_run_file",
    "read_yaml",
]
