"""Small worlds for property tests: so few names that asks, grants and blocks often meet."""

from hypothesis import strategies as st

from broker.domain.asking import Ask
from broker.domain.policy import Environment, Grant, Partner, Policy, Realm
from broker.token.revocation import Selector

REALMS = ("evaluation", "research")
PARTNERS = ("acme", "globex")
USERS = ("alice", "bob")
WORKLOADS = ("nightly", "weekly")
PLACES = ("ci", "cluster")
MODELS = ("mythos", "oracle", "mythos@a", "mythos@b")
LABELS = ("jurisdiction=us", "jurisdiction=eu")
CLEARANCES = ("clearance=low", "clearance=high")
TTLS_S = st.integers(1, 120)


def some(values, *, least=0):
    return st.frozensets(st.sampled_from(values), min_size=least)


realms = st.builds(
    lambda name, max_ttl_s, both: Realm(
        name, f"https://broker.example/{name}", f"models.{name}", max_ttl_s, needs_both=both
    ),
    st.sampled_from(REALMS),
    TTLS_S,
    st.sampled_from([False, False, False, True]),
)

partners = st.builds(
    lambda name, labels, users, workloads, places: Partner(
        name,
        tuple(sorted(labels)),
        users,
        workloads,
        {place: Environment(place, f"spiffe://{name}.example/{place}") for place in places},
    ),
    st.sampled_from(PARTNERS),
    some(LABELS),
    some(USERS),
    some(WORKLOADS),
    some(PLACES),
)


@st.composite
def grants(draw):
    longest_s = draw(TTLS_S)
    by_label = draw(st.sampled_from([False, False, True]))
    return Grant(
        id=draw(st.uuids()).hex,
        partner="" if by_label else draw(st.sampled_from(PARTNERS)),
        partner_labels=draw(some(LABELS)) if by_label else frozenset(),
        model_labels=draw(st.just(frozenset()) | some(CLEARANCES)),
        realm=draw(st.sampled_from(REALMS)),
        models=draw(some(MODELS)),
        environments=draw(some(PLACES, least=1)),
        users=draw(some(USERS)),
        workloads=draw(some(WORKLOADS)),
        default_ttl_s=draw(st.integers(1, longest_s)),
        max_ttl_s=longest_s,
    )


@st.composite
def policies(draw):
    """Any policy, also those that a policy file would be refused for: the decision trusts no file."""
    return Policy(
        realms={realm.name: realm for realm in draw(st.lists(realms, max_size=3))},
        models=draw(some(MODELS)),
        partners={partner.name: partner for partner in draw(st.lists(partners, max_size=3))},
        labels_by_model=draw(st.dictionaries(st.sampled_from(MODELS), some(CLEARANCES, least=1), max_size=2)),
        grants=tuple(draw(st.lists(grants(), max_size=5, unique_by=lambda grant: grant.id))),
    )


@st.composite
def asks(draw):
    is_user, is_workload = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    return Ask(
        realm=draw(st.sampled_from(REALMS)),
        partner=draw(st.sampled_from(PARTNERS)),
        user=draw(st.sampled_from(USERS)) if is_user else None,
        workload=draw(st.sampled_from(WORKLOADS)) if is_workload else None,
        models=tuple(draw(st.lists(st.sampled_from(MODELS), min_size=1, max_size=3, unique=True))),
        environment=draw(st.sampled_from(PLACES)),
        ttl_s=draw(st.none() | TTLS_S),
    )


@st.composite
def selectors(draw):
    """Selectors that can block, of one to three dimensions."""
    values = {
        "realm": st.sampled_from(REALMS),
        "partner": st.sampled_from(PARTNERS),
        "user": st.sampled_from(USERS),
        "workload": st.sampled_from(WORKLOADS),
        "environment": st.sampled_from(PLACES),
        "model": st.sampled_from(MODELS),
        "label": st.sampled_from((*LABELS, *CLEARANCES)),
    }
    names = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True))
    return Selector.of(**{name: draw(values[name]) for name in names})


blocks = st.dictionaries(selectors(), st.integers(1, 1000), max_size=3)


@st.composite
def granted(draw):
    """Return (ask, policy) where one grant covers the whole ask, among others that may or may not."""
    ask = draw(asks())
    policy = draw(policies())
    longest_s = draw(TTLS_S) + (ask.ttl_s or 0)
    grant = Grant(
        id="covering",
        partner=ask.partner,
        realm=ask.realm,
        models=frozenset(ask.models),
        environments=frozenset({ask.environment}),
        users=frozenset({ask.user} - {None}),
        workloads=frozenset({ask.workload} - {None}),
        default_ttl_s=draw(st.integers(1, longest_s)),
        max_ttl_s=longest_s,
    )
    partner = Partner(
        ask.partner,
        tuple(sorted(draw(some(LABELS)))),
        frozenset(USERS),
        frozenset(WORKLOADS),
        {place: Environment(place, f"spiffe://{ask.partner}.example/{place}") for place in PLACES},
    )
    realm = Realm(ask.realm, "https://broker.example/x", "models.x", draw(TTLS_S) + (ask.ttl_s or 0))
    return ask, Policy(
        realms={**policy.realms, ask.realm: realm},
        models=policy.models | frozenset(ask.models),
        partners={**policy.partners, ask.partner: partner},
        grants=(*policy.grants, grant),
    )
