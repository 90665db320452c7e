"""How much to fuzz: a little in every test run, as much as wanted with ``pytest tests/fuzz --fuzz-inputs N``."""

from __future__ import annotations

import pytest

# Inputs to each target; all targets together stay under ten seconds of CPU time.
INPUTS = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-inputs", type=int, default=INPUTS, metavar="N", help="inputs to each fuzz target")


@pytest.fixture
def fuzz_inputs(pytestconfig: pytest.Config) -> int:
    """Inputs to each target; the default where the option is not known, because pytest was started on a folder above."""
    return pytestconfig.getoption("--fuzz-inputs", default=INPUTS)
