"""One image for all container tests, and one project that runs compose.yaml as it stands, on free ports.

scripts/test-containers runs these tests, because they need a Docker engine and build an image.
"""

from __future__ import annotations

import os
import ssl
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .project import Connect, Https, Project, run

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(900 if "realm" in getattr(item, "fixturenames", ()) else 300))
            if os.environ.get("FRONTD_TEST_CONTAINERS") != "1":
                item.add_marker(pytest.mark.skip(reason="needs a Docker engine: run by scripts/test-containers"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the last lines of frontd's log: the containers are gone when somebody reads it."""
    report = yield
    project = getattr(item, "funcargs", {}).get("project")
    if report.failed and project is not None:
        logs = project.compose("logs", "--no-color", "--tail", "60", "frontd", check=False)
        report.sections.append(("log of frontd", logs.stdout))
    return report


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The image under a tag of its own, built as compose builds it."""
    tag = f"frontd-test:{uuid.uuid4().hex[:12]}"
    Project("frontd-test", {"FRONTD_IMAGE": tag}).compose("build", "frontd")
    yield tag
    run("docker", "image", "rm", tag, check=False)


@pytest.fixture(scope="session")
def project(image: str) -> Iterator[Project]:
    """frontd and its apps, up and healthy; removed with volumes and networks at the end."""
    settings = {"FRONTD_IMAGE": image, "FRONTD_HTTP_PORT": "0", "FRONTD_HTTPS_PORT": "0"}
    project = Project(f"frontd-test-{uuid.uuid4().hex[:8]}", settings)
    try:
        up = project.compose("up", "-d", "--wait", "--wait-timeout", "60", check=False)
        assert up.returncode == 0, up.stderr + project.compose("logs", "--no-color").stdout
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "2", check=False)


@pytest.fixture
def https(project: Project) -> Connect:
    """Connections to the published https port that trust the authority in the state volume and nothing else."""
    authority = project.compose("exec", "-T", "frontd", "cat", "/var/lib/frontd/dev/ca.crt").stdout
    context = ssl.create_default_context(cadata=authority)
    port = project.port(443)
    return lambda: Https(port, context)


@pytest.fixture
def three(project: Project) -> Iterator[set[str]]:
    """The host names of three shop containers; one is left afterwards."""
    project.scale("shop", 3)
    names = project.hostnames("shop")
    assert len(names) == 3
    yield names
    project.scale("shop", 1)
