"""Who may reserve and register which prefix: HTTP.sys's rules, by example and by an oracle that counts segments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd.model.reservations import (
    LONGEST_NAME,
    MOST_QUEUES,
    MOST_RESERVATIONS,
    MOST_URLS,
    Account,
    Denied,
    Holder,
    Namespace,
    Queue,
    Reservation,
    Word,
    check_name,
    covering,
)
from frontd.model.urlprefix import UrlPrefix

ANN, BOB, STAFF = Account("user", 1001, "ann"), Account("user", 1002, "bob"), Account("group", 50, "staff")
SHOP = Account("pool", -1, "shop")
ROOT = Holder(Account("user", 0, "root"), is_admin=True)
ann, bob = Holder(ANN, frozenset({1001, 50})), Holder(BOB, frozenset({1002}))
shop = Holder(SHOP)


def url(text: str) -> UrlPrefix:
    return UrlPrefix.parse(text)


def space(*reserved: tuple[str, Account], delegate: bool = False, queues: tuple[Queue, ...] = ()) -> Namespace:
    return Namespace(tuple(Reservation(url(text), account, delegate) for text, account in reserved), queues)


def refused(word: Word, act: Callable[[], object]) -> str:
    with pytest.raises(Denied) as caught:
        act()
    assert caught.value.word is word
    return caught.value.sentence


def registered(it: Namespace, holder: Holder, text: str, queue: str = "q") -> Namespace:
    if it.queue(queue) is None:
        it = it.create(holder, queue)
    return it.register(holder, queue, [url(text)])


# ---------------------------------------------------------------------------------------------------- registering


def test_the_longest_reservation_decides() -> None:
    it = space(("https://+:443/shop/", ANN), ("https://+:443/shop/admin/", BOB))
    for text in ("https://+:443/shop/", "https://+:443/SHOP/x/", "https://+/shop/adm/"):
        assert url(text) in [claim.url for claim in registered(it, ann, text).claims() if claim.queue]
    said = refused(Word.ACCESS_DENIED, lambda: registered(it, ann, "https://+:443/shop/admin/x/"))
    assert said == "https://+:443/shop/admin/ is reserved for user bob, not for user ann"
    registered(it, bob, "https://+:443/Shop/Admin/")


@pytest.mark.parametrize(
    "other",
    ["https://shop.test:443/shop/", "https://*:443/shop/", "https://+:444/shop/", "https://+/shopping/", "https://+/"],
)
def test_a_reservation_is_for_its_category_port_and_segments_alone(other: str) -> None:
    it = space(("https://+:443/shop/", ANN))
    said = refused(Word.ACCESS_DENIED, lambda: registered(it, ann, other))
    assert said == f"{url(other)} is under no reservation, so it is the administrators', not user ann's"
    registered(it, ROOT, other)


def test_a_conflict_is_one_inside_a_category_only() -> None:
    """The documented pair: ``+:80/vroot/`` of one user and ``adatum.com:80/vroot/`` of another."""
    it = space(("http://+:80/vroot/", ANN), ("http://adatum.com:80/vroot/", BOB))
    it = registered(registered(it, ann, "http://+:80/vroot/", "a"), bob, "http://adatum.com:80/vroot/", "b")
    assert [(str(claim.url), claim.queue) for claim in it.claims()] == [
        ("http://+:80/vroot/", "a"), ("http://adatum.com:80/vroot/", "b"),
    ]  # fmt: skip


def test_groups_and_pools_have_reservations_too() -> None:
    it = space(("http://a.test/s/", STAFF), ("http://a.test/p/", SHOP))
    registered(it, ann, "http://a.test/s/x/")
    refused(Word.ACCESS_DENIED, lambda: registered(it, bob, "http://a.test/s/x/"))
    registered(it, shop, "http://a.test/p/", "shop")
    said = refused(Word.ACCESS_DENIED, lambda: registered(it, ann, "http://a.test/p/x/"))
    assert said == "http://a.test:80/p/ is reserved for pool shop, not for user ann"


def test_what_is_reserved_for_a_pool_is_its_queues_alone() -> None:
    it = space(("http://a.test/p/", SHOP))
    said = refused(Word.ALREADY_EXISTS, lambda: registered(it, ROOT, "http://a.test/p/"))
    assert said == "http://a.test:80/p/ is reserved for pool shop, and its queue has it"
    refused(Word.ACCESS_DENIED, lambda: registered(it, ann, "http://a.test/p/"))
    registered(it, ROOT, "http://a.test/p/x/")


def test_a_prefix_has_one_queue() -> None:
    it = registered(space(("http://a.test/s/", ANN)), ann, "http://a.test/s/x/", "one")
    said = refused(Word.ALREADY_EXISTS, lambda: registered(it, ann, "http://a.test/S/X/", "two"))
    assert said == "http://a.test:80/S/X/ is already registered for the queue one"
    assert registered(it, ann, "http://a.test/S/x/", "one") == it  # once more for its own is nothing new
    registered(it.delete(ann, "one"), ann, "http://a.test/s/x/", "two")


def test_http_and_https_do_not_share_a_port() -> None:
    it = space(("http://a.test:8080/", ANN))
    said = refused(Word.SCHEME_CONFLICT, lambda: it.reserve(ROOT, Reservation(url("https://b.test:8080/"), ANN)))
    assert said == "port 8080 is for http; http and https do not share a port"
    refused(Word.SCHEME_CONFLICT, lambda: registered(it, ROOT, "https://b.test:8080/"))
    listening = Namespace(schemes=((443, "https"),))
    refused(Word.SCHEME_CONFLICT, lambda: listening.reserve(ROOT, Reservation(url("http://b.test:443/"), ANN)))


def test_a_queue_is_its_creators() -> None:
    it = space(("http://a.test/", ANN), ("http://b.test/", BOB)).create(ann, "q")
    said = refused(Word.ACCESS_DENIED, lambda: registered(it, bob, "http://b.test/"))
    assert said == "the queue q is user ann's, not user bob's"
    refused(Word.ACCESS_DENIED, lambda: it.delete(bob, "q"))
    refused(Word.NOT_FOUND, lambda: it.delete(ann, "p"))
    refused(Word.ALREADY_EXISTS, lambda: it.create(ann, "q"))
    assert it.delete(ROOT, "q").queues == ()


def test_what_is_taken_back_ends() -> None:
    it = registered(space(("http://a.test/s/", ANN)), ann, "http://a.test/s/x/")
    assert [claim.queue for claim in it.claims()] == ["q", ""]
    assert it.unreserve(ROOT, url("http://a.test/S/")).claims() == []
    longer = it.reserve(ROOT, Reservation(url("http://a.test/s/x/"), BOB))
    assert [(str(claim.url), claim.queue, claim.owner) for claim in longer.claims()] == [
        ("http://a.test:80/s/", "", "user ann"), ("http://a.test:80/s/x/", "", "user bob"),
    ]  # fmt: skip
    # what an administrator has registered needs no reservation
    assert [claim.queue for claim in registered(Namespace(), ROOT, "http://a.test/").claims()] == ["q"]


def test_renamed_users_keep_what_is_theirs() -> None:
    it = space(("http://a.test/", Account("user", 1001, "ann-before-she-married")))
    registered(it, ann, "http://a.test/")
    refused(Word.ACCESS_DENIED, lambda: registered(it, Holder(Account("user", 7, "ann")), "http://a.test/", "other"))


# ---------------------------------------------------------------------------------------------------- reserving


def test_who_may_delegate_hands_a_part_on() -> None:
    it = space(("http://a.test/s/", ANN), delegate=True)
    part = Reservation(url("http://a.test/s/b/"), BOB)
    handed = it.reserve(ann, part)
    registered(handed, bob, "http://a.test/s/b/")
    refused(Word.ACCESS_DENIED, lambda: registered(handed, ann, "http://a.test/s/b/"))
    assert handed.unreserve(ann, part.url) == it
    said = refused(Word.ACCESS_DENIED, lambda: handed.unreserve(bob, part.url))
    assert said == "http://a.test:80/s/ is reserved for user ann; user bob may not hand parts of it on"
    refused(Word.ACCESS_DENIED, lambda: it.unreserve(ann, url("http://a.test/s/")))  # not what is around it
    refused(Word.ALREADY_EXISTS, lambda: it.reserve(ann, Reservation(url("http://a.test/S/"), BOB)))
    refused(Word.ACCESS_DENIED, lambda: space(("http://a.test/s/", ANN)).reserve(ann, part))
    said = refused(Word.ACCESS_DENIED, lambda: it.reserve(ann, Reservation(url("http://a.test/"), ANN)))
    assert said == "http://a.test:80/ is under no reservation; only administrators may reserve it"


def test_what_the_configuration_reserves_is_taken_back_there() -> None:
    it = Namespace((Reservation(url("http://a.test/"), ANN, is_fixed=True),))
    said = refused(Word.ACCESS_DENIED, lambda: it.unreserve(ROOT, url("http://a.test/")))
    assert said.endswith("stands in the configuration, under `urlacl`: remove it there")
    refused(Word.NOT_FOUND, lambda: it.unreserve(ROOT, url("http://a.test/x/")))


# ---------------------------------------------------------------------------------------------------- names, bounds


@pytest.mark.parametrize("name", ["shop", "a", "Shop.2_x@b-c", "x" * LONGEST_NAME])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "a-", "a/b", "a b", "a\n", "\u00e4", "a\0", "../x", "x" * (LONGEST_NAME + 1)]
)
def test_what_is_no_name(name: str) -> None:
    refused(Word.INVALID, lambda: check_name(name))


def test_everything_is_bounded() -> None:
    many = tuple(Reservation(url(f"http://a.test/{n}/"), ANN) for n in range(MOST_RESERVATIONS))
    refused(Word.TOO_MANY, lambda: Namespace(many).reserve(ROOT, Reservation(url("http://b.test/"), ANN)))
    queues = tuple(Queue(f"q{n}", ANN) for n in range(MOST_QUEUES))
    refused(Word.TOO_MANY, lambda: Namespace(queues=queues).create(ann, "one-more"))
    it = Namespace().create(ROOT, "q").register(ROOT, "q", [url(f"http://a.test/{n}/") for n in range(MOST_URLS)])
    refused(Word.TOO_MANY, lambda: it.register(ROOT, "q", [url("http://a.test/")]))


# ---------------------------------------------------------------------------------------------------- an oracle

PATHS = st.lists(st.sampled_from(["a", "B", "ab"]), max_size=3).map(lambda parts: "/" + "".join(f"{p}/" for p in parts))
URLS = st.builds(
    UrlPrefix, st.sampled_from(["http", "https"]), st.sampled_from(["+", "*", "a.test", "*.test", "::1"]),
    st.sampled_from([80, 443]), PATHS,
)  # fmt: skip
ACCOUNTS = st.sampled_from([ANN, BOB, STAFF, SHOP])
HOLDERS = st.sampled_from([ann, bob, shop, ROOT])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), HOLDERS, URLS, ACCOUNTS, st.booleans()),
        st.tuples(st.just("unreserve"), HOLDERS, URLS, ACCOUNTS, st.booleans()),
        st.tuples(st.just("register"), HOLDERS, URLS, ACCOUNTS, st.booleans()),
    ),
    max_size=25,
)


def decides(it: Namespace, wanted: UrlPrefix) -> Reservation | None:
    """The deciding reservation, found by walking up the segments."""
    segments = wanted.path.lower().strip("/").split("/") if wanted.path != "/" else []
    for size in range(len(segments), -1, -1):
        for one in it.reservations:
            own = one.url.path.lower().strip("/")
            same = (one.url.scheme, one.url.host, one.url.port) == (wanted.scheme, wanted.host, wanted.port)
            if same and (own.split("/") if own else []) == segments[:size]:
                return one
    return None


def owns(holder: Holder, account: Account) -> bool:
    return account == holder.account or (account.kind == "group" and account.number in holder.groups)


@given(STEPS)
def test_whatever_is_done_the_rules_hold(steps: list[tuple[str, Holder, UrlPrefix, Account, bool]]) -> None:
    it = Namespace()
    for what, holder, wanted, account, flag in steps:
        before, there = it, decides(it, wanted)
        assert covering(it.reservations, wanted) == there
        try:
            if what == "reserve":
                it = it.reserve(holder, Reservation(wanted, account, flag))
                assert holder.is_admin or (there is not None and there.delegate and owns(holder, there.account))
            elif what == "unreserve":
                it = it.unreserve(holder, wanted)
                around = decides(it, wanted)
                assert holder.is_admin or (around is not None and around.delegate and owns(holder, around.account))
            else:
                it = registered(it, holder, str(wanted), str(holder.account).replace(" ", "-"))
                assert holder.is_admin or (there is not None and owns(holder, there.account))
        except Denied:
            assert it == before
        ports = {(one.url.port, one.url.scheme) for one in it.reservations}
        ports |= {(one.port, one.scheme) for queue in it.queues for one in queue.urls}
        assert len(ports) == len(dict(ports))
        prefixes = [(c.url.scheme, c.url.host, c.url.port, c.url.path.lower()) for c in it.claims()]
        assert len(prefixes) == len(set(prefixes))
        for claim in it.claims():  # nobody has requests that are reserved for somebody else
            deciding = decides(it, claim.url)
            queue = it.queue(claim.queue)
            if queue is not None and deciding is not None and queue.owner != ROOT.account:
                holder = next(one for one in (ann, bob, shop) if one.account == queue.owner)
                assert owns(holder, deciding.account)
