"""The profile `attach` of compose.yaml for real: an app without a network, reached through its side-car."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from .project import Connect, Project, answered_by, fetch


@pytest.fixture(scope="module")
def attached(project: Project) -> Iterator[Project]:
    """The project with its tenant; the tenant is removed at the end."""
    project.compose("--profile", "attach", "up", "-d", "--wait", "--wait-timeout", "60")
    yield project
    project.compose("rm", "--stop", "--force", "reports-attach", "reports")


def test_an_app_without_a_network_answers(attached: Project, https: Connect) -> None:
    (app,) = attached.containers("reports")
    assert list(app["NetworkSettings"]["Networks"]) == ["none"]
    status, page = fetch(https(), "/reports/")
    assert status == 200
    assert answered_by(page)[0] == "reports"


def test_requests_wait_for_the_side_car(attached: Project, https: Connect) -> None:
    attached.compose("stop", "--timeout", "5", "reports-attach")
    with closing(https()) as waiting:
        waiting.request("GET", "/reports/")
        attached.compose("start", "reports-attach")
        answer = waiting.getresponse()
        page = answer.read().decode()
    assert answer.status == 200, page
    assert answered_by(page)[0] == "reports"


def test_without_it_requests_are_refused_by_name_and_go_nowhere_else(attached: Project, https: Connect) -> None:
    attached.compose("kill", "reports-attach")
    status, page = fetch(https(), "/reports/")
    assert status == 503
    assert "AppOffline" in page
    assert fetch(https())[0] == 200
    attached.compose("start", "reports-attach")
    status, page = fetch(https(), "/reports/")
    assert (status, answered_by(page)[0]) == (200, "reports")
