"""What the compiler made of the kernels of all test files of a session, asked once."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from aot import Report, compiled


@pytest.fixture(scope="session")
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """By test module, for every one of the session that reads them."""
    if find_spec("triton") is None:
        pytest.skip("triton, whose compiler is asked, is not installed")
    readers = [item for item in request.session.items if "reports" in getattr(item, "fixturenames", ())]
    return compiled(sorted({item.path.stem for item in readers}), tmp_path_factory.mktemp("triton"))
