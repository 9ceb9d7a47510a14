"""The documentation says what the program does.

Tables that can be made from the program are made from it: `python -m tests.test_docs` writes them between the marker
comments of docs/, and a test notices when that was forgotten.  What is written by hand is checked against the program:
reasons and their statuses, log fields, refused messages, commands and options, complete configurations, links.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12

from frontd.cli.root import cli
from frontd.config.docs import reference, settings_table
from frontd.config.load import loads
from frontd.config.model import Timeouts
from frontd.lanes.requests import make_request
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import IDENTITY_FIELDS
from frontd.model.messages import Client, Exchange
from frontd.model.urlprefix import canonical_path
from frontd.pipeline.accesslog import ACCESS, ACCESS_FIELDS, ERROR_FIELDS, ERRORS
from frontd.pipeline.discovery import Discovery
from frontd.pipeline.fields import CLIENT_FIELDS
from frontd.processes.reload import FIXED
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DECISIONS = DOCS / "decisions"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------------------------------------------- generated parts


def keys_part() -> str:
    """The tables of every key, one level below the heading they stand under."""
    return re.sub(r"(?m)^## ", "### ", reference()).strip()


def reasons_part() -> str:
    """The overview of the reasons, each linked to its entry."""
    lines = ["| Reason | status | side | what the page says |", "|---|---|---|---|"]
    for reason in Reason:
        link = f"[`{reason.word}`](#{anchor(heading_of(reason))})"
        lines.append(f"| {link} | {shown_status(reason)} | {reason.source.value} | {reason.sentence} |")
    return "\n".join(lines)


def shown_status(reason: Reason) -> str:
    usual = str(reason.status) if reason.status else "–"
    return f"{usual}; the filter may choose another" if reason is Reason.Rejected else usual


def heading_of(reason: Reason) -> str:
    return f"`{reason.word}`"


def anchor(heading: str) -> str:
    """The fragment of a heading, as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


def settings_part(word: str) -> str:
    """The tables of the settings of a bundled plugin."""
    return settings_table(KINDS[word].settings)


KINDS = Discovery().everything(None).kinds
GENERATED: dict[str, tuple[Path, Callable[[], str]]] = {
    "keys": (DOCS / "configuration.md", keys_part),
    "reasons": (DOCS / "errors.md", reasons_part),
    **{
        f"settings of {word}": (DOCS / "bundled-plugins.md", partial(settings_part, word))
        for word, kind in KINDS.items()
        if kind.origin == "bundled"
    },
}


def with_generated(text: str, name: str, part: str) -> str:
    """`text` with `part` between the markers of `name`."""
    begin = f"<!-- generated: {name}; python -m tests.test_docs writes this part -->"
    end = "<!-- end of generated -->"
    before, found, rest = text.partition(begin)
    assert found, f"the marker of {name} is missing"
    _, found, after = rest.partition(end)
    assert found, f"the end of {name} is missing"
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_current(name: str) -> None:
    page, make = GENERATED[name]
    text = page.read_text()
    assert text == with_generated(text, name, make()), "run: .venv/bin/python -m tests.test_docs"


# ---------------------------------------------------------------------------------------------------- Markdown


def fenced(page: Path, *languages: str) -> list[tuple[str, bool]]:
    """The fenced blocks of these languages: text, and whether the page calls it complete."""
    found = re.finditer(r"(<!-- complete -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(block.group(3), bool(block.group(1))) for block in found if block.group(2) in languages]


def files_of(page: Path) -> list[tuple[str, str]]:
    """(name, text) of every block that the page tells the reader to write to a file."""
    found = re.finditer(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(block.group(1), block.group(2)) for block in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{name_of(page)} has no heading {heading!r}"
    return found.group(1)


def first_cells(text: str) -> list[str]:
    """The code words in the first column of the tables in `text`."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


# ---------------------------------------------------------------------------------------------------- reasons


def test_every_reason_has_an_entry_in_the_order_of_the_enum() -> None:
    headings = re.findall(r"^### (.*)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert headings == [heading_of(reason) for reason in Reason]


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.word)
def test_an_entry_says_status_cause_effect_and_remedy(reason: Reason) -> None:
    entry = section(DOCS / "errors.md", heading_of(reason))
    assert re.findall(r"^\* \*\*(.+?):\*\*", entry, re.MULTILINE) == ["Status", "Cause", "Client sees", "Do"]
    assert f"* **Status:** {shown_status(reason)}\n" in entry


def test_the_picture_of_a_request_has_every_reason_and_every_timer() -> None:
    picture = (DOCS / "life-of-a-request.svg").read_text()
    assert [reason.word for reason in Reason if not re.search(rf"[> ]{re.escape(reason.word)}[ <]", picture)] == []
    page = (DOCS / "life-of-a-request.md").read_text()
    assert [name for name in Timeouts.model_fields if f"`timeouts.{name}`" not in page] == []


def test_the_fields_that_strangers_may_not_send_are_listed() -> None:
    told = section(DOCS / "security.md", "Fields that say who somebody is").lower()
    assert [name for name in sorted(CLIENT_FIELDS | IDENTITY_FIELDS) if f"`{name.decode()}`" not in told] == []


# ---------------------------------------------------------------------------------------------------- logs, reload


def log_keys(line: str) -> list[str]:
    return list(json.loads(line))


def a_client() -> Client:
    return Client("192.0.2.1", 40000, "192.0.2.1", "192.0.2.2", 443, "https", "https", 443)


def test_the_fields_of_the_access_log_are_documented() -> None:
    page = DOCS / "operations.md"
    assert first_cells(section(page, "Access log, W3C")) == ACCESS_FIELDS.split()
    line = ACCESS["json"](Exchange(a_client(), None, 0.0, 0.0), 0.0, 0.0)
    assert first_cells(section(page, "Access log, JSON")) == log_keys(line)


def test_the_fields_of_the_error_log_are_documented() -> None:
    page = DOCS / "operations.md"
    assert first_cells(section(page, "Error log, W3C")) == ERROR_FIELDS.split()
    error, _ = ERRORS["json"]
    assert first_cells(section(page, "Error log, JSON")) == log_keys(error(a_client(), Reason.QueueFull, "", 0.0))


def test_example_lines_have_every_field() -> None:
    lines = [line for block, _ in fenced(DOCS / "operations.md", "") for line in block.splitlines()]
    access, error, remark = lines
    assert len(access.split(" ")) == len(ACCESS_FIELDS.split())
    assert len(error.split(" ")) == len(ERROR_FIELDS.split())
    assert remark.startswith("#Remark: ")


def test_what_needs_a_restart_is_documented() -> None:
    row = re.search(r"^\| needs a restart \| (.*) \|$", section(DOCS / "operations.md", "Reload"), re.MULTILINE)
    assert row
    assert re.findall(r"`(\w+)`", row.group(1)) == list(FIXED)


# ---------------------------------------------------------------------------------------------------- security


def refused_examples() -> list[tuple[str, str]]:
    rows = section(DOCS / "security.md", "Refused on the wire")
    return re.findall(r"^\| .+? \| `([^|]+)` \| `([^`|]+)` \|$", rows, re.MULTILINE)


def understand(data: bytes) -> None:
    """Take `data` as a server does, up to the request it means.  Raises `FrontdError`."""
    connection = ServerConnection()
    connection.receive(data)
    head = connection.next_head(WireLimits())
    assert head is not None
    make_request(head)


@pytest.mark.parametrize(("example", "word"), refused_examples())
def test_refused_examples_are_refused(example: str, word: str) -> None:
    with pytest.raises(FrontdError) as caught:
        understand(example.encode().decode("unicode_escape").encode("latin-1"))
    assert caught.value.reason.word == word


def test_there_are_refused_examples() -> None:
    assert len(refused_examples()) == section(DOCS / "security.md", "Refused on the wire").count("\n| ") - 1


def test_canonical_paths_of_the_documentation() -> None:
    rows = re.findall(r"^\| `(/.*?)` \| `(/.*?)` \|$", section(DOCS / "security.md", "One path"), re.MULTILINE)
    assert len(rows) >= 4
    assert [(asked, canonical_path(asked)) for asked, _ in rows] == rows


# ---------------------------------------------------------------------------------------------------- configurations


def complete_configurations() -> Iterator[tuple[str, str]]:
    """(page, text) of every complete configuration; in README.md that is each one with `sites`."""
    for page in PAGES:
        for text, complete in fenced(page, "yaml"):
            if complete or (page.parent == ROOT and re.search(r"^sites:", text, re.MULTILINE)):
                yield name_of(page), text


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples expect in /run/secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "staff-ca.pem")
    shop = authority.issue_cert("example.com", "*.example.com")
    shop.private_key_pem.write_to_path(folder / "shop.key")
    shop.cert_chain_pems[0].write_to_path(folder / "shop.crt")
    key = load_pem_private_key(shop.private_key_pem.bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate(shop.cert_chain_pems[0].bytes())
    secret = BestAvailableEncryption(b"of the test")
    (folder / "staff.pfx").write_bytes(pkcs12.serialize_key_and_certificates(None, key, certificate, None, secret))
    (folder / "pfx-password").write_text("of the test\n")
    (folder / "nt-users").write_text("ann:8846f7eaee8fb117ad06bdd830b7586c:staff\n")
    (folder / "users").write_text("ann:$2b$10$D.UrDdBPSizbCV0OfHGL1eUNeS4OCVAGpl5V02snHY1CAMDRbvqIK:staff\n")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories that the examples expect in /srv."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("www", "media", "reports"):
        (folder / name).mkdir()
    return folder


@pytest.mark.parametrize(("page", "text"), list(complete_configurations()))
def test_complete_configurations_load_without_a_warning(
    page: str, text: str, secrets: Path, served: Path, tmp_path: Path
) -> None:
    for name, content in files_of(ROOT / page):  # plugins that the page has the reader write
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    text = text.replace("/run/secrets/", f"{secrets}/").replace("/srv/", f"{served}/")
    loaded = loads(
        text, name=page, base=tmp_path, environ={"HOME": "/home/u"}, container=False, mountinfo=tmp_path / "-",
        discover=Discovery().catalogue,
    )  # fmt: skip
    assert loaded.warnings == []


def test_the_pages_have_complete_configurations() -> None:
    pages = [page for page, _ in complete_configurations()]
    assert pages.count("docs/configuration.md") >= 3
    assert pages.count("docs/bundled-plugins.md") >= 6
    assert pages.count("README.md") >= 1


# ---------------------------------------------------------------------------------------------------- commands


def commands() -> Iterator[tuple[str, str]]:
    """(page, arguments) of every frontd command in a page, whether in a block or in a sentence."""
    for page in PAGES:
        for block, _ in fenced(page, "bash", "console", "sh"):
            for line in block.splitlines():
                for found in re.finditer(
                    r"(?:^|[\s/($])frontd (?!frontd )((?:-{1,2})?[a-z][^#|)>]*)", line.partition(" #")[0]
                ):
                    if not re.match(r"\w+:", found.group(1)):  # its own words: `frontd ready: …`
                        yield name_of(page), found.group(1).strip()
        for span in re.findall(r"`([^`\n]+)`", prose(page)):
            if whole := re.match(r"(?:docker compose exec frontd )?frontd ((?:-{1,2})?[a-z][^:]*)$", span):
                yield name_of(page), whole.group(1)


def wrong_in(arguments: str) -> str:
    """What is wrong with the arguments of a frontd command; empty when every verb and option exists."""
    command: click.Command = cli
    context = click.Context(cli)
    for word in shlex.split(arguments):
        if word == "--":  # what follows is a command of somebody else's
            break
        if word in ("…", "-"):
            continue
        if word.startswith("-"):
            options = {name for option in command.params for name in option.opts} | set(context.help_option_names)
            if word.partition("=")[0] not in options | {"-h", "--help"}:
                return f"{command.name} has no option {word}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None:
                return f"there is no verb {word}"
            command = found
    return ""


@pytest.mark.parametrize(("page", "arguments"), sorted(set(commands())))
def test_commands_of_the_documentation_exist(page: str, arguments: str) -> None:
    assert wrong_in(arguments) == ""


def test_wrong_commands_are_noticed() -> None:
    assert wrong_in("serf -c x") == "there is no verb serf"
    assert wrong_in("serve --quickly") == "serve has no option --quickly"
    assert wrong_in("show config live") == ""
    assert wrong_in("attach --url x -- app --quickly") == ""


def test_every_verb_is_in_the_documentation() -> None:
    used = {arguments.split()[0] for _, arguments in commands()}
    assert set(cli.list_commands(click.Context(cli))) - used == set()


# ---------------------------------------------------------------------------------------------------- links


def links(page: Path) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, fragment = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def test_every_page_is_in_the_index() -> None:
    index = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    pages = [*DOCS.glob("*.md"), *(DOCS / "how-to").glob("*.md")]
    assert [name_of(page) for page in pages if page.name != "README.md" and page not in index] == []


def test_modules_of_the_documentation_exist() -> None:
    named = {(name_of(page), path) for page in PAGES for path in re.findall(r"`((?:\w+/)+\w+\.py)`", prose(page))}
    named |= {("picture", path) for path in re.findall(r"\w+/\w+\.py", (DOCS / "life-of-a-request.svg").read_text())}
    named -= {(name_of(page), name) for page in PAGES for name, _ in files_of(page)}
    places = (ROOT, ROOT / "frontd")
    assert [(page, path) for page, path in named if not any((place / path).exists() for place in places)] == []


def write() -> None:
    """Write the generated parts into their pages."""
    for name, (page, make) in GENERATED.items():
        page.write_text(with_generated(page.read_text(), name, make()))


if __name__ == "__main__":
    write()
