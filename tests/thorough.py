"""What every run tests, and what only `make laws` does: the default run has one case for each kind of fault.

A test that has more cases there chooses them by `IS_THOROUGH`, as `ALL if IS_THOROUGH else FEW`; one that runs there
alone is marked with `left_to_laws`. A test of every family with `each_kind` has a family of each kind in every run.
`make laws` runs every test file that imports one of them.
"""

import os

import pytest

from tests.table import FAMILIES, OF_EACH_KIND

IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "laws"

# For a test over the fixture `adapter`: every family in `make laws`, and one of each kind in every run.
each_kind = pytest.mark.parametrize("adapter", FAMILIES if IS_THOROUGH else OF_EACH_KIND, indirect=True)


def left_to_laws(reason: str) -> pytest.MarkDecorator:
    """Leave a test, or a case of it, to `make laws`, for this reason."""
    return pytest.mark.skipif(not IS_THOROUGH, reason=f"`make laws` runs it: {reason}")


def left_to_leaderboard(reason: str) -> pytest.MarkDecorator:
    """Leave a test of the table of methods to `make leaderboard-quick`, for this reason."""
    return pytest.mark.skipif("LEADERBOARD" not in os.environ, reason=f"`make leaderboard-quick` runs it: {reason}")


def left_to_package(reason: str) -> pytest.MarkDecorator:
    """Leave a test of the built package to `make package`, for this reason."""
    return pytest.mark.skipif("PACKAGE" not in os.environ, reason=f"`make package` runs it: {reason}")


def left_to_docs_test(reason: str) -> pytest.MarkDecorator:
    """Leave a test of the built site to `make docs-test`, for this reason."""
    return pytest.mark.skipif("SITE" not in os.environ, reason=f"`make docs-test` runs it: {reason}")
