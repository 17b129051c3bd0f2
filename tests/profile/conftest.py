"""One measured report for all tests that only look at it."""

from __future__ import annotations

import pytest

from edgecal.profile import roofline
from tests.profile.engines import measured, tiny_engine, write_files


@pytest.fixture(scope="session", autouse=True)
def small_plain_read():
    """What a machine reads is for bench to say; half a gigabyte before every measurement is most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "buffer_bytes", lambda: 8 << 20)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="session")
def engine(folder):
    return tiny_engine(folder)


@pytest.fixture(scope="session")
def measurement(engine, folder):
    return measured(engine, folder)[0]


@pytest.fixture(scope="session")
def report(measurement):
    return measurement.report
