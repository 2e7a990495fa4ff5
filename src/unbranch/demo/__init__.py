"""The whole road in one command: train with branches, fold, prove, export, time, and show it."""

from unbranch.demo.outcome import Outcome
from unbranch.demo.road import run

__all__ = ["Outcome", "run"]
