"""The tree of errors: the docstring draws what is there, and each leaf can be caught as a builtin too."""

from __future__ import annotations

import re

import pytest

from edgefuse.runtime import errors
from edgefuse.runtime.errors import EdgefuseError


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")

    assert sorted(drawn) == sorted(leaf.__name__ for leaf in EdgefuseError.__subclasses__())


@pytest.mark.parametrize("leaf", EdgefuseError.__subclasses__())
def test_a_leaf_is_a_builtin_error_too(leaf):
    assert issubclass(leaf, (ValueError, RuntimeError, OSError, ImportError))
