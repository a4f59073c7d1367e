"""Deprecated: import `v2l.inference.ray` instead. This module is removed in the next release."""

from v2l.inference.ray import Encode, rows  # noqa: F401
