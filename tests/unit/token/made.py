"""Strategies for values of the token room."""

import string
from typing import Any

from hypothesis import strategies as st

from broker.token.claims import Claims
from tests.realm_keys import RealmKeys

_EDGE = string.ascii_lowercase + string.digits
names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,12}[a-z0-9])?", fullmatch=True)
opaque = st.text(string.ascii_letters + string.digits + "-_", min_size=8, max_size=64)
thumbprints = st.text(string.ascii_letters + string.digits + "-_", min_size=43, max_size=43)
models = st.one_of(names, st.builds("{}@{}".format, names, names))
labels = st.builds("{}={}".format, names, names)


@st.composite
def claims_of(draw: st.DrawFn, keys: RealmKeys) -> Claims:
    """Any valid claims of a realm."""
    partner, who = draw(names), draw(names)
    kind = draw(st.sampled_from(["user", "workload"]))
    chosen = tuple(draw(st.lists(models, min_size=1, max_size=16, unique=True)))
    run = draw(st.none() | opaque)
    life = draw(st.integers(1, 7 * 86_400))
    json: Any = st.none() | st.dictionaries(names, names, max_size=3)
    return keys.claims(
        sub=f"{partner}/{kind}/{who}",
        partner=partner,
        user=who if kind == "user" else None,
        workload=who if kind == "workload" else None,
        client_id=f"spiffe://{draw(names).replace('_', '-')}/{draw(names)}",
        exp=keys.now_s + life,
        jti=draw(opaque),
        scope=" ".join(f"model:{model}" for model in chosen),
        models=chosen,
        run=run,
        test=draw(st.none() | names) if run is not None else None,
        env=draw(names),
        labels=tuple(sorted(draw(st.sets(labels, max_size=16)))),
        parents=tuple(draw(st.lists(opaque, max_size=8, unique=True))),
        idx=draw(st.integers(1, 2**53 - 1)),
        cnf=draw(
            st.none() | st.builds(lambda name, text: {name: text}, st.sampled_from(["jkt", "x5t#S256"]), thumbprints)
        ),
        act=draw(json),
    )
