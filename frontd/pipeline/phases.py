"""Plugins become phases: for each hook of a site, the functions to ask, in the order of the configuration.

How it works
------------
pluggy checks each instance against `hookspecs` and orders what was registered; then the functions are frozen into plain
tuples, and nothing of pluggy is left on the way of a request (one of its calls costs 1 to 3 us, one of ours 0.1 us; and
its ``firstresult`` would take the coroutine of an ``async def`` for an answer).

`first` asks until one answers and fails closed; `first_soft` notes what goes wrong and goes on.

Invariants
----------
* Order is that of the configuration, the server's plugins before the site's; challenges alone have one of their own.
* A hook is waited for in the task lane only (`net.traps`); a phase without coroutines is left without a wait.
* A hook whose answer is of a type that its specification does not list has failed, and so has one whose answer cannot
  be sent as it is (`_fit`).
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_args, get_type_hints

import pluggy

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers, bad_field, octets
from frontd.model.messages import Client, Exchange, Response
from frontd.model.verdicts import Continue, Identity, Refuse
from frontd.net.traps import fault_at_once, fault_of, task_lane
from frontd.pipeline import hookspecs
from frontd.pipeline.plugin import Plugin

TRACE = "FRONTD_TRACE_PLUGINS"  # in the environment; "1": each call goes to stderr with its time


@dataclass(frozen=True, slots=True)
class Spec:
    """A hook as `hookspecs` describes it: its arguments, what it may return besides None, its documentation."""

    name: str
    arguments: tuple[str, ...]
    returns: frozenset[type]
    doc: str

    @property
    def is_plain(self) -> bool:
        """Whether it must be a plain ``def``: it is asked where nothing can wait any more."""
        return self.name in hookspecs.PLAIN

    def __str__(self) -> str:
        names = ", ".join(sorted(kind.__name__ for kind in self.returns))
        return f"{self.name}({', '.join(self.arguments)}) -> {f'{names} or None' if names else 'None'}"


def _specs() -> Iterator[Spec]:
    for name, function in vars(hookspecs).items():
        if hasattr(function, f"{hookspecs.GROUP}_spec"):
            hints = get_type_hints(function)
            answers = hints["return"]
            kinds = get_args(answers) or (answers,)
            returns = frozenset(kind for kind in kinds if kind is not type(None))
            yield Spec(name, tuple(inspect.signature(function).parameters), returns, inspect.getdoc(function) or "")


SPECS = {spec.name: spec for spec in _specs()}  # in the order of a request's life


class Hook(NamedTuple):
    """One function of a phase: what to call, the types it may answer with, its name for people, and whose it is.

    `follows`: it is asked only where its plugin has left something in the state of the exchange.
    """

    function: Callable[..., Any]
    allows: frozenset[type]
    where: str
    plugin: Plugin
    follows: bool = False

    def concerns(self, subject: Exchange | Client) -> bool:
        """Whether it has to be asked about this one."""
        return not self.follows or (subject.states is not None and self.plugin in subject.states)


Phase = tuple[Hook, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Phases:
    """The phases of one site, and the plugins they were made of.

    `schemes` are the authentication schemes (lower case) that plugins of the site consume; `sees_response` tells
    whether any hook looks at the answer.
    """

    accept_client: Phase = ()
    filter_request: Phase = ()
    authenticate: Phase = ()
    challenge: Phase = ()
    authorize: Phase = ()
    route: Phase = ()
    cache_lookup: Phase = ()
    rewrite_request: Phase = ()
    forward_failed: Phase = ()
    admit_response: Phase = ()
    rewrite_response: Phase = ()
    log: Phase = ()
    client_closed: Phase = ()
    plugins: tuple[Plugin, ...] = ()
    schemes: frozenset[bytes] = frozenset()
    sees_response: bool = field(default=False)

    def before_logon(self) -> Phases:
        """The phases of an answer that is given to everybody, such as the redirect to https: no logon, no routing."""
        return Phases(
            filter_request=self.filter_request,
            rewrite_response=self.rewrite_response,
            log=self.log,
            client_closed=self.client_closed,
            plugins=self.plugins,
            sees_response=self.sees_response,
        )


NO_PHASES = Phases()
assert [one.name for one in fields(Phases)][: len(SPECS)] == list(SPECS)


class _Manager(pluggy.PluginManager):
    """One site's plugins.  A method is a hook by its name alone; our own checks have refused near-misses before."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        if name not in SPECS:
            return None
        return {
            "wrapper": False, "hookwrapper": False, "optionalhook": False, "tryfirst": False, "trylast": False,
            "specname": None,
        }  # fmt: skip


# How strong an authentication scheme is, by its lower-case name; others are between NTLM and Basic.
STRENGTH = {"negotiate": 2, "ntlm": 1, "basic": -1}


def freeze(plugins: Iterable[Plugin], challenges: Sequence[str] = ()) -> Phases:
    """The phases of `plugins`, which are in the order of the configuration; `challenges` are the words of those that
    ask to log on before the others, which follow by the strength of their schemes.

    Raises `pluggy.PluginValidationError` when a method does not fit its hook.
    """
    standing = tuple(plugins)
    if not standing:
        return NO_PHASES
    manager = _Manager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    for position, plugin in reversed(list(enumerate(standing))):  # pluggy calls last what was registered first
        manager.register(plugin, f"{plugin.name}#{position}")
    manager.check_pending()
    trace = os.environ.get(TRACE) == "1"
    phases: dict[str, Phase] = {}
    for name, spec in SPECS.items():
        found = reversed(getattr(manager.hook, name).get_hookimpls())
        hooks = [
            Hook(one.function, spec.returns, f"{one.plugin.name}.{name}", one.plugin, name in one.plugin.follow_ups)
            for one in found
        ]
        if name == "challenge":
            hooks.sort(key=lambda hook: challenge_rank(hook.plugin.name, hook.plugin.scheme, challenges))
        phases[name] = tuple(_traced(hook) if trace else hook for hook in hooks)
    return Phases(
        **phases,
        plugins=standing,
        schemes=frozenset(plugin.scheme.lower().encode() for plugin in standing if plugin.scheme),
        sees_response=any(phases[name] for name in ("admit_response", "rewrite_response", "log")),
    )


def challenge_rank(word: str, scheme: str, challenges: Sequence[str]) -> tuple[int, int]:
    """What challenges are ordered by: the smallest goes out first, and equal ones stay in the plugins' order."""
    place = challenges.index(word) if word in challenges else len(challenges)
    return place, -STRENGTH.get(scheme.lower(), 0)


# ---------------------------------------------------------------------------------------------------- asking


async def first(phase: Phase, exchange: Exchange) -> Any:
    """The first answer of a phase, or None.  Raises `FrontdError`: ``PluginFault``, or what a hook refused with."""
    for hook in phase:
        if hook.follows and not hook.concerns(exchange):
            continue
        try:
            answer = hook.function(exchange)
            if answer is None:
                continue
            if type(answer) not in hook.allows:
                answer = await _waited_for(hook, answer)
            if type(answer) is not Response or answer.ready is None:
                _fit(answer)
        except FrontdError as error:  # a body that is too large, a client that has left
            error.detail = error.detail or f"in {hook.where}"
            raise
        except BaseException as error:
            if (fault := fault_of(error)) is None:
                raise
            raise plugin_fault(exchange, hook.where, fault) from error
        if answer is not None:
            return answer
    return None


async def first_soft(phase: Phase, exchange: Exchange, *more: object) -> Any:
    """The first answer of a phase, or None; a hook that fails is noted on the exchange and passed over."""
    for hook in phase:
        if hook.follows and not hook.concerns(exchange):
            continue
        try:
            answer = await ask(hook, exchange, *more)
        except BaseException as error:
            if (fault := fault_of(error)) is None:
                raise
            exchange.faults.append((hook.where, fault))
            continue
        if answer is not None:
            return answer
    return None


def tell(phase: Phase, subject: Exchange | Client, faults: list[tuple[str, Exception]]) -> list[str]:
    """Ask every hook of a phase of plain functions; what they answer in texts.  What goes wrong is added to
    `faults`."""
    answers = []
    for hook in phase:
        if hook.follows and not hook.concerns(subject):
            continue
        try:
            answer = hook.function(subject)
            if answer is None:
                continue
            if type(answer) not in hook.allows:
                raise _wrong_type(hook, answer)
            _fit(answer)
        except BaseException as error:
            faults.append((hook.where, fault_at_once(error)))
            continue
        answers.append(answer)
    return answers


async def ask(hook: Hook, *subjects: object) -> Any:
    """The answer of one hook.  Raises what it raises, and `TypeError` or `ValueError` for what it may not answer."""
    return await checked(hook, hook.function(*subjects))


async def checked(hook: Hook, answer: Any) -> Any:
    """What a hook has answered, once it has been waited for.  Raises like `ask`."""
    if answer is not None and type(answer) not in hook.allows:
        answer = await _waited_for(hook, answer)
    _fit(answer)
    return answer


async def _waited_for(hook: Hook, answer: Any) -> Any:
    """What `answer` is when it has been waited for.  Raises `TypeError` when it is of no type that the hook may
    have."""
    if isinstance(answer, Awaitable):
        await task_lane()
        answer = await answer
    if answer is not None and not isinstance(answer, tuple(hook.allows)):
        raise _wrong_type(hook, answer)
    return answer


def _wrong_type(hook: Hook, answer: object) -> TypeError:
    if inspect.iscoroutine(answer):
        answer.close()
    names = " or ".join([*sorted(kind.__name__ for kind in hook.allows), "None"])
    return TypeError(f"it returned {type(answer).__name__}; it may return {names}")


def _fit(answer: object) -> None:
    """Raises `ValueError` or `TypeError` when an answer of the right type cannot be sent: here it is still known whose
    it is."""
    values: list[Any] = []
    if isinstance(answer, Identity):
        if answer.fits:
            return
        values = [answer.name, answer.scheme, *answer.groups, *answer.sids]
    elif isinstance(answer, Response):
        if fault := bad_status(answer.status) or unsendable(answer):
            raise ValueError(fault)
        if answer.body is None:
            raise ValueError("an answer without a body is the app's, and nobody else's")
    elif isinstance(answer, Refuse):
        if fault := bad_field(Response(answer.status, answer.headers).headers):
            raise ValueError(fault)
    elif isinstance(answer, Continue):
        values = [answer.scheme, answer.token]
    elif isinstance(answer, str):  # a challenge, or the name of a destination
        values = [answer]
        if not answer:
            raise ValueError("it returned an empty text")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{type(answer).__name__} holds {type(value).__name__} where a text belongs")
        if not (value.isprintable() and value.isascii() and value == value.strip()):
            fault = bad_field(Headers.of((type(answer).__name__.encode(), octets(value))))
            if fault:
                raise ValueError(fault)
    if isinstance(answer, Identity):
        object.__setattr__(answer, "fits", True)


def bad_status(status: object) -> str:
    """What is wrong with the status of an answer; empty: nothing."""
    fine = type(status) is int and 200 <= status <= 599
    return "" if fine else f"{status!r} is no status of an answer (200 to 599)"


def unsendable(response: Response) -> str:
    """What is wrong with fields or body of an answer that passed through a plugin's hands; empty: nothing."""
    body: object = response.body
    if body is not None and not isinstance(body, bytes):
        return f"a body is bytes, not {type(body).__name__}"
    return bad_fields(response.headers)


def bad_fields(headers: Headers) -> str:
    """What is wrong with fields that passed through a plugin's hands; empty: nothing."""
    try:
        return bad_field(headers)
    except (AttributeError, TypeError, ValueError):
        return "the header fields are no frontd.Headers of bytes any more"


def plugin_fault(exchange: Exchange, where: str, error: Exception) -> FrontdError:
    """The refusal of an exchange because of a plugin; the log gets the plugin's name and, later, the traceback."""
    exchange.faults.append((where, error))
    return FrontdError(Reason.PluginFault, detail=f"{where}: {type(error).__name__}")


# ---------------------------------------------------------------------------------------------------- tracing


def _traced(hook: Hook) -> Hook:
    """`hook` with a line on stderr for each call: which exchange, its time, and the type of its answer."""
    function, where, site = hook.function, hook.where, hook.plugin.site
    is_plain = where.rpartition(".")[2] in hookspecs.PLAIN

    def told(subject: Exchange | Client, begun: float, answer: object, waited: str = "") -> None:
        number = f"request {subject.number} " if isinstance(subject, Exchange) else ""
        took = (time.perf_counter() - begun) * 1e6
        kind = "None" if answer is None else type(answer).__name__
        print(f"trace: {site or 'server'}: {number}{where} {took:.0f} us{waited} -> {kind}", file=sys.stderr)  # noqa: T201

    async def waiting(subject: Exchange | Client, begun: float, answer: Awaitable[Any]) -> Any:
        try:
            found = await answer
        except BaseException as error:
            told(subject, begun, error, " waited")
            raise
        told(subject, begun, found, " waited")
        return found

    def traced(subject: Exchange | Client, *more: object) -> Any:
        begun = time.perf_counter()
        try:
            answer = function(subject, *more)
        except BaseException as error:
            told(subject, begun, error)
            raise
        if isinstance(answer, Awaitable) and not is_plain:
            return waiting(subject, begun, answer)
        told(subject, begun, answer)
        return answer

    return hook._replace(function=traced)
