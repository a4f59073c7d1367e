"""Deprecated: import `v2l.inference.ray` instead. This module is removed in the next release."""

import warnings

from v2l.inference.ray import Encode, rows  # noqa: F401

warnings.warn("v2l.integrations.ray is now v2l.inference.ray; import it from there", DeprecationWarning, stacklevel=2)
