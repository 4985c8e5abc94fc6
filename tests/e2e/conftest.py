"""One f-HAL run of the stock verl, with which several files compare theirs."""

from pathlib import Path

import pytest

from tests.e2e.host_runs import Host


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> Host:
    return Host(tmp_path_factory.mktemp("f_hal"))


@pytest.fixture(scope="session")
def uninterrupted(host) -> Path:
    """FSDP2 on one rank."""
    return host.finish("uninterrupted")
