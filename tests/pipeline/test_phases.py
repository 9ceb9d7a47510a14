"""Phases by themselves: who is asked, what may be answered, and who gets in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pluggy
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import frontd
from frontd import Allow, Continue, Exchange, FrontdError, Identity, Plugin, Redirect, Refuse, Response, UseHttp11
from frontd.model.errors import Reason
from frontd.net.traps import TASK_LANE, carry
from frontd.pipeline.admission import admitted, identified
from frontd.pipeline.hookspecs import PLAIN
from frontd.pipeline.phases import NO_PHASES, SPECS, Phases, first, first_soft, freeze, tell
from frontd.pipeline.plugin import BLOCKING_THREADS
from tests.plugins.exchanges import asked, placed
from tests.scenarios.plugged import made, says


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing but its move to a task."""
    try:
        while True:
            assert coroutine.send(None) is TASK_LANE
    except StopIteration as stop:
        return stop.value


def later(value: object) -> Callable[..., object]:
    async def hook(self: Plugin, exchange: Exchange) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    return hook


def site(*hooks: dict[str, object]) -> Phases:
    """A site with one plugin for each of these sets of hooks."""
    return freeze([placed(made(f"p{number}", **methods)) for number, methods in enumerate(hooks)])


# ---------------------------------------------------------------------------------------------------- the hooks


def test_the_hooks_their_order_and_their_answers() -> None:
    """What authors rely on: a change here is a change for every plugin there is."""
    assert [str(spec) for spec in SPECS.values()] == [
        "accept_client(client) -> Refuse or None",
        "filter_request(exchange) -> Refuse, Response or None",
        "authenticate(exchange) -> Continue, Identity, Refuse, UseHttp11 or None",
        "challenge(exchange) -> str or None",
        "authorize(exchange) -> Allow, Refuse, Response or None",
        "route(exchange) -> Redirect, str or None",
        "cache_lookup(exchange) -> Response or None",
        "rewrite_request(exchange) -> None",
        "forward_failed(exchange, error) -> Response, str or None",
        "admit_response(exchange) -> Response, str or None",
        "rewrite_response(exchange) -> None",
        "log(exchange) -> None",
        "client_closed(client) -> None",
    ]
    assert {name for name, spec in SPECS.items() if spec.is_plain} == PLAIN == {"challenge", "log", "client_closed"}
    assert all(spec.doc for spec in SPECS.values())


def test_a_site_without_plugins_has_no_phases() -> None:
    assert freeze([]) is NO_PHASES
    assert not any(getattr(NO_PHASES, name) for name in SPECS)


def test_what_is_known_of_a_site() -> None:
    phases = site({"scheme": "Basic", "authenticate": says(None)}, {"scheme": "BEARER"}, {"log": says(None)})
    assert phases.schemes == {b"basic", b"bearer"}
    assert phases.sees_response
    assert not site({"authenticate": says(None)}).sees_response
    public = phases.before_logon()
    assert (public.authenticate, public.challenge, public.authorize) == ((), (), ())
    assert public.log == phases.log


def test_order_is_that_of_the_list_in_every_phase() -> None:
    hooks = {name: eval(f"lambda self, {', '.join(spec.arguments)}: None") for name, spec in SPECS.items()}
    phases = freeze([placed(made(name, **hooks)) for name in "zamzb"])
    for name in SPECS:
        assert [hook.where for hook in getattr(phases, name)] == [f"{word}.{name}" for word in "zamzb"]


def test_a_hook_that_an_instance_gives_itself_is_checked_too() -> None:
    class Late(Plugin):
        name = "late"

        def prepare(self) -> None:
            self.authorize = lambda request, response: None

    with pytest.raises(pluggy.PluginValidationError, match="authorize"):
        freeze([placed(Late)])


# ---------------------------------------------------------------------------------------------------- answers

RIGHT: dict[str, tuple[object, ...]] = {
    "filter_request": (Refuse(404, "Rejected"), Response(200)),
    "authenticate": (Identity("a"), Continue("x", "NTLM"), UseHttp11(), Refuse(401, "LogonFailed")),
    "authorize": (Allow(), Refuse(403, "Forbidden"), Response(200)),
    "route": ("app", Redirect("/")),
    "cache_lookup": (Response(200),),
    "rewrite_request": (),
}
ANYTHING = st.one_of(
    st.sampled_from([value for values in RIGHT.values() for value in values]),
    st.sampled_from([Identity, NotImplemented, ""]),
    st.booleans(), st.integers(), st.floats(), st.text("ab:/.", min_size=1), st.binary(), st.builds(object),
    st.lists(st.none(), max_size=1), st.dictionaries(st.text(), st.none(), max_size=1),
)  # fmt: skip


@given(st.sampled_from(sorted(RIGHT)), ANYTHING, st.booleans())
def test_only_what_is_listed_is_an_answer(hook: str, value: object, is_async: bool) -> None:
    """Everything else is a fault that names the plugin, and None is "go on"; truth and equality count for nothing."""
    phase = getattr(site({hook: (later if is_async else says)(value)}), hook)
    exchange = asked()
    if type(value) in SPECS[hook].returns and value != "":
        assert done(first(phase, exchange)) is value
        assert done(first_soft(phase, exchange)) is value
        assert exchange.faults == []
        return
    with pytest.raises(FrontdError) as caught:
        done(first(phase, exchange))
    assert caught.value.reason is Reason.PluginFault
    assert caught.value.detail.startswith(f"p0.{hook}: ")
    assert done(first_soft(phase, exchange)) is None
    assert [where for where, _ in exchange.faults] == [f"p0.{hook}"] * 2


def test_a_subclass_of_what_is_listed_is_fine() -> None:
    class Mine(Response):
        """An answer with a name of its own."""

    answer = Mine(200)
    assert done(first(site({"filter_request": says(answer)}).filter_request, asked())) is answer


def test_the_first_answer_ends_a_phase() -> None:
    seen: list[str] = []
    phases = site(
        {"filter_request": says(None)}, {"filter_request": later(None)}, {"filter_request": says(Response(201))},
        {"filter_request": lambda self, exchange: seen.append(self.name)},
    )  # fmt: skip
    assert done(first(phases.filter_request, asked())).status == 201
    assert seen == []


def test_plain_hooks_are_told_and_none_hides_another() -> None:
    faults: list[tuple[str, Exception]] = []
    phases = site(
        {"challenge": says("A")}, {"challenge": says(KeyError("x"))}, {"challenge": says(None)},
        {"challenge": lambda self, exchange: later("B")(self, exchange)}, {"challenge": says(b"C")},
        {"challenge": says("D")},
    )  # fmt: skip
    assert tell(phases.challenge, asked(), faults) == ["A", "D"]
    assert [(where, type(error)) for where, error in faults] == [
        ("p1.challenge", KeyError), ("p3.challenge", TypeError), ("p4.challenge", TypeError),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- who gets in

WRONG: list[object] = [True, {}, "alice", 1, Response, ValueError("x")]
AUTHENTICATE: list[object] = [None, None, Identity("alice"), Refuse(401, "LogonFailed"), Continue("x", "NTLM"), *WRONG]
AUTHORIZE: list[object] = [
    None, None, Allow(), Allow(), Refuse(403, "Forbidden"), Refuse(404, "Rejected"), Response(200), *WRONG,
]  # fmt: skip
ABSENT = "absent"
HOOKS = st.tuples(
    st.sampled_from([ABSENT, *AUTHENTICATE]), st.sampled_from([ABSENT, *AUTHORIZE]), st.booleans(), st.booleans()
)


def decided(authenticate: list[object], authorize: list[object]) -> int:
    """What must come of it, written down once more in the simplest words: a status, 0 for "let in"."""
    who: object = None
    for answer in authenticate:
        if answer is not None:
            who = answer
            break
    if isinstance(who, Refuse | Continue):
        return 401
    if who is not None and not isinstance(who, Identity):
        return 500
    stranger = bool(authenticate) and who is None
    is_allowed = not stranger
    for answer in authorize:
        if isinstance(answer, Allow):
            is_allowed = True
        elif isinstance(answer, Refuse):
            return 401 if stranger and answer.reason == "Forbidden" else answer.status
        elif isinstance(answer, Response):
            return answer.status
        elif answer is not None:
            return 500
    return 0 if is_allowed else 401


@settings(max_examples=200)
@given(st.lists(HOOKS, max_size=4))
def test_nobody_gets_in_unless_somebody_said_so(plugins: list[tuple[object, object, bool, bool]]) -> None:
    """Every mixture of plugins that say who it is, allow, refuse, answer, stay silent, raise or answer nonsense."""
    hooks: list[dict[str, object]] = []
    for who, may, is_async, is_late in plugins:
        methods = {"authenticate": (who, is_async), "authorize": (may, is_late)}
        hooks.append({
            name: (later if waits else says)(value) for name, (value, waits) in methods.items() if value is not ABSENT
        })  # fmt: skip
    phases, exchange = site(*hooks), asked()

    async def admission() -> int:
        answer: object = None
        try:
            if phases.authenticate:
                answer = await identified(exchange, phases)
            if answer is None:
                answer = await admitted(exchange, phases)
        except FrontdError as error:
            return error.status
        if isinstance(answer, Refuse | Response):
            return answer.status
        assert answer is None or isinstance(answer, Continue)
        return 401 if answer else 0

    status = done(admission())
    expected = decided(
        [who for who, _, _, _ in plugins if who is not ABSENT], [may for _, may, _, _ in plugins if may is not ABSENT]
    )
    assert status == expected
    if status == 0 and any(who is not ABSENT for who, _, _, _ in plugins):
        assert exchange.identity is not None or any(isinstance(may, Allow) for _, may, _, _ in plugins)


# ---------------------------------------------------------------------------------------------------- threads


async def test_what_blocks_runs_in_threads_of_its_own() -> None:
    loop, peak, active = threading.get_ident(), 0, 0
    lock, full = threading.Lock(), threading.Event()
    seen: set[int] = set()

    class Slow(Plugin):
        name = "slow"

        @frontd.blocking
        def filter_request(self, exchange: Exchange) -> Refuse | None:
            """It says why."""
            nonlocal peak, active
            with lock:
                active += 1
                peak = max(peak, active)
                seen.add(threading.get_ident())
                if active == BLOCKING_THREADS:
                    full.set()
            assert full.wait(10)
            with lock:
                active -= 1
            return Refuse(404, "Rejected") if exchange.request.path == "/no" else None

    phase = freeze([placed(Slow)]).filter_request
    answers: list[object] = []

    async def one(path: str) -> None:
        answers.append(await _carried(phase, path))

    async with trio.open_nursery() as nursery:
        for number in range(3 * BLOCKING_THREADS):
            nursery.start_soon(one, "/no" if number % 2 else "/")
    assert peak == BLOCKING_THREADS == 8
    assert loop not in seen
    assert sum(isinstance(answer, Refuse) for answer in answers) == len(answers) / 2
    assert Slow.filter_request.__doc__ == "It says why."


async def _carried(phase: Any, path: str) -> object:
    return await carry(first(phase, asked(path)))


async def test_what_is_raised_in_a_thread_is_a_fault_like_any_other() -> None:
    class Broken(Plugin):
        name = "broken"

        @frontd.blocking
        def authorize(self, exchange: Exchange) -> None:
            raise OSError("no such file")

    with pytest.raises(FrontdError, match=r"broken\.authorize: OSError"):
        await _carried(freeze([placed(Broken)]).authorize, "/")


def test_an_async_def_cannot_be_blocking() -> None:
    async def lookup(self: Plugin, exchange: Exchange) -> None: ...

    with pytest.raises(TypeError, match=r"is for a plain def, and .*lookup is an async def"):
        frontd.blocking(lookup)


# ---------------------------------------------------------------------------------------------------- trace


def test_each_call_is_traced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Who, how long, and the type of the answer: never its value."""
    monkeypatch.setenv("FRONTD_TRACE_PLUGINS", "1")
    phases = site(
        {"filter_request": says(None), "authenticate": later(Identity("alice")), "challenge": says("Basic")},
        {"filter_request": says(KeyError("secret")), "challenge": lambda self, exchange: later("x")(self, exchange)},
    )
    exchange = asked()
    with pytest.raises(FrontdError):
        done(first(phases.filter_request, exchange))
    assert done(first(phases.authenticate, exchange)) == Identity("alice")
    assert tell(phases.challenge, exchange, []) == ["Basic"]
    lines = capsys.readouterr().err.splitlines()
    start = f"trace: site: request {exchange.number} "
    assert all(line.startswith(start) for line in lines)
    words = [line.removeprefix(start).split(" ") for line in lines]
    assert [(word[0], word[-1]) for word in words] == [
        ("p0.filter_request", "None"), ("p1.filter_request", "KeyError"), ("p0.authenticate", "Identity"),
        ("p0.challenge", "str"), ("p1.challenge", "coroutine"),
    ]  # fmt: skip
    assert all(word[1].isdigit() and word[2] == "us" for word in words)
    assert "waited" in words[2]
    assert not any("alice" in line or "secret" in line or "Basic" in line for line in lines)


@pytest.mark.parametrize("value", ["", "0", "yes"])
def test_nothing_is_traced_unless_it_is_asked_for(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FRONTD_TRACE_PLUGINS", value)
    done(first(site({"filter_request": says(None)}).filter_request, asked()))
    assert capsys.readouterr().err == ""
