"""compose.yaml for real: answers, what its containers may do, and apps that restart, die and multiply under load."""

from __future__ import annotations

import http.client
import json
import threading

from .project import Connect, Project, answered_by, fetch, load, run, until


def test_the_file_is_valid_without_any_setting() -> None:
    run("docker", "compose", "-f", "compose.yaml", "config", "-q")


def test_answers_come_over_http_and_verified_https(project: Project, https: Connect) -> None:
    status, page = fetch(http.client.HTTPConnection("localhost", project.port(80), timeout=60))
    assert (status, {answered_by(page)}) == (200, {("shop", name) for name in project.hostnames("shop")})
    status, page = fetch(https(), "/blog/")
    assert (status, {answered_by(page)}) == (200, {("blog", name) for name in project.hostnames("blog")})
    assert "\nGET / HTTP/1.1\n" in page


def test_only_frontd_is_published_and_the_apps_see_no_other_network(project: Project) -> None:
    for service in ("shop", "blog"):
        (container,) = project.containers(service)
        assert not any(container["NetworkSettings"]["Ports"].values())
        assert [name.removeprefix(project.name) for name in container["NetworkSettings"]["Networks"]] == ["_apps"]
    (network,) = json.loads(run("docker", "network", "inspect", f"{project.name}_apps").stdout)
    assert network["Internal"] is True


def test_frontd_has_no_privilege_and_cannot_change_its_root(project: Project) -> None:
    status = dict(line.split(":\t", 1) for line in project.python("print(open('/proc/1/status').read())").splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    mounts = [line.split() for line in project.python("print(open('/proc/1/mounts').read())").splitlines()]
    (root,) = [options for _, place, _, options, *_ in mounts if place == "/"]
    assert "ro" in root.split(",")


def test_it_is_healthy_and_tells_its_status(project: Project) -> None:
    (container,) = project.containers("frontd")
    assert container["State"]["Health"]["Status"] == "healthy"
    project.frontd("healthcheck")
    assert "http://shop:8000" in project.frontd("status")
    assert {one["address"] for one in project.pool("shop")["targets"]} == {
        f"{one['NetworkSettings']['Networks'][f'{project.name}_apps']['IPAddress']}:8000"
        for one in project.containers("shop")
    }


def test_a_restarted_app_fails_no_get(project: Project, https: Connect) -> None:
    (before,) = project.containers("shop")
    with load(https) as gets:
        project.compose("restart", "shop")
    (after,) = project.containers("shop")
    assert after["State"]["StartedAt"] > before["State"]["StartedAt"]
    assert gets.failed == []
    # Nobody could answer while the only container was down: the GETs of that time waited in frontd's queue.
    assert 0.1 < gets.longest < 30


def test_three_replicas_all_answer_and_removed_ones_are_forgotten(project: Project, https: Connect) -> None:
    with load(https) as gets:
        project.scale("shop", 3)
        names = project.hostnames("shop")
        assert len(names) == 3
        until(lambda: set(gets.by) >= names or bool(gets.failed), "an answer of each replica")
        project.scale("shop", 1)
        until(lambda: len(project.pool("shop")["targets"]) == 1, "one target left")
        gets.goes_on(100)
        seen = gets.by.copy()
        gets.goes_on(500)
        (left,) = project.hostnames("shop")
        assert {name for name, count in gets.by.items() if count > seen[name]} == {left}
    assert gets.failed == []


def test_a_killed_replica_fails_no_get(project: Project, https: Connect, three: set[str]) -> None:
    with load(https) as gets:
        until(lambda: set(gets.by) >= three or bool(gets.failed), "an answer of each replica")
        run("docker", "kill", min(three))
        seen = gets.by.copy()
        gets.goes_on(500)
        assert {name for name in gets.by if gets.by[name] > seen[name]} == three - {min(three)}
    assert gets.failed == []


def test_stopping_finishes_the_request_in_flight_and_ends_with_0(project: Project, https: Connect) -> None:
    answers: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answers.append(fetch(https(), "/sleep?s=4")))
    client.start()
    until(lambda: any(target["active"] for target in project.pool("shop")["targets"]), "the request is in flight")
    project.compose("stop", "frontd")
    client.join()
    assert answers == [(200, "slept 4 s\n")]
    (container,) = project.containers("frontd")
    assert container["State"]["ExitCode"] == 0
    project.compose("up", "-d", "--wait")


def test_the_state_volume_outlives_the_containers(project: Project, https: Connect) -> None:
    (before,) = project.containers("frontd")
    project.compose("up", "-d", "--force-recreate", "--wait", "frontd", "certificate")
    (after,) = project.containers("frontd")
    assert after["Id"] != before["Id"]
    connection = https()  # trusts the authority from before
    connection.port = project.port(443)
    assert fetch(connection)[0] == 200
