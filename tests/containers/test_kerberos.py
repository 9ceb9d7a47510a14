"""The profile `kerberos` of compose.yaml for real: the lines of the README, with a ticket and without one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest

from .project import REPOSITORY, Project, run

README = (REPOSITORY / "README.md").read_text()
ASK = "curl --silent --output /dev/null --write-out %{http_code} https://intranet.example.test/whoami"


def blocks() -> tuple[list[str], str]:
    """The lines of the README that need the profile, and what it says they print."""
    commands, output = r"^```bash\n(docker compose --profile kerberos up.*?)^```$", r"^```\n(.*?)^```$"
    found = re.search(f"{commands}.*?{output}", README, re.MULTILINE | re.DOTALL)
    assert found, "the README does not show the profile kerberos"
    return found[1].splitlines(), found[2]


def literally(project: Project, line: str) -> str:
    """What a line of the README prints on stdout, in a project of the test's own."""
    return run("bash", "-ec", line, settings={**project.settings, "COMPOSE_PROJECT_NAME": project.name}).stdout


@pytest.fixture(scope="module")
def realm(image: str) -> Iterator[Project]:
    """The profile, up by the first line of the README; removed with its images at the end."""
    settings = {"FRONTD_IMAGE": image, "FRONTD_HTTP_PORT": "0", "FRONTD_HTTPS_PORT": "0"}
    project = Project(f"frontd-test-{uuid.uuid4().hex[:8]}", settings)
    try:
        project.compose("--profile", "kerberos", "build", patience=600)  # it compiles
        try:
            literally(project, blocks()[0][0])
        except AssertionError as error:
            logs = project.compose("--profile", "kerberos", "logs", "--no-color", check=False).stdout
            raise AssertionError(f"{error}\n{logs}") from None
        yield project
    finally:
        project.compose("--profile", "kerberos", "down", "--volumes", "--timeout", "2", check=False)
        run("docker", "image", "rm", f"{image}-kerberos", f"{image}-realm", check=False)


def inside(project: Project, service: str, command: str) -> str:
    """What a shell command prints in a container."""
    return project.compose("exec", "-T", service, "sh", "-ec", command).stdout.strip()


def test_the_lines_of_the_readme_tell_the_name_of_the_user(realm: Project) -> None:
    (_, line), expected = blocks()
    assert literally(realm, line) == expected == "ann@EXAMPLE.TEST\n"


def test_without_a_ticket_nobody_comes_in(realm: Project) -> None:
    assert inside(realm, "client", f"{ASK} --negotiate -u :") == "200"
    assert inside(realm, "client", ASK) == "401"
    inside(realm, "client", "kdestroy")
    try:
        assert inside(realm, "client", f"{ASK} --negotiate -u :") == "401"
    finally:
        inside(realm, "client", "echo Ann-pass1 | kinit ann")
    assert inside(realm, "client", f"{ASK} --negotiate -u :") == "200"


def test_it_is_as_hardened_as_without_and_remembers_tokens_over_a_restart(realm: Project) -> None:
    """The root cannot be written, so the replay cache is in the state directory, which is a volume."""
    (container,) = realm.containers("intranet")
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    cache = inside(realm, "intranet", 'stat -c "%n %u %a" "$KRB5RCACHEDIR"/krb5_*')
    assert cache == "/var/lib/frontd/krb5_10001.rcache2 10001 600"
    assert [mount["Type"] for mount in container["Mounts"] if mount["Destination"] == "/var/lib/frontd"] == ["volume"]


def test_keys_are_where_they_are_needed(realm: Project) -> None:
    assert inside(realm, "intranet", "ls /run/keytab") == "http.keytab\nintranet.crt\nintranet.key"
    assert inside(realm, "client", "ls /run/keytab /run/trust") == "/run/keytab:\n\n/run/trust:\nintranet.crt"


def test_the_extra_is_in_one_image_and_a_compiler_in_none(realm: Project, image: str) -> None:
    source = (
        "import importlib.util as it, shutil;"
        "print(it.find_spec('gssapi') is not None, *filter(shutil.which, ('cc', 'gcc')))"
    )
    for name, expected in ((image, "False"), (f"{image}-kerberos", "True")):
        said = run("docker", "run", "--rm", "--network", "none", "--entrypoint", "python", name, "-c", source).stdout
        assert said.strip() == expected
