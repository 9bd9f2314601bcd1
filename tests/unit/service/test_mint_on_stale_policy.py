"""P3: a mint decided on a policy that has moved meanwhile is decided again, with any number of brokers."""

import secrets
from dataclasses import replace

import pytest

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.policy_file import load_policy
from broker.domain.asking import Ask
from broker.domain.decision import Allowed
from broker.errors import Blocked, Defect, Forbidden, NotGranted, RunEnded, Unauthenticated
from broker.service.metering import Unmetered
from broker.service.mint import Mint, claims_for
from broker.service.policies import Policies
from broker.token.revocation import Selector
from tests.served import POLICY
from tests.unit.service.world import OPS, request

ASK = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")


@pytest.fixture
def behind(world, tmp_path):
    """Return (mint, policies) of a broker that hears nothing from the one that `world` is."""
    policies = Policies(world.ledger, load_policy, world.clock)
    signer = KeyRotation(
        LocalRoot(tmp_path / "keys", b"not a secret in a test"),
        world.clock,
        realms=policies.realm_keys,
        publish=lambda *_: None,
        make=make_memory_key,
        meter=Unmetered(),
        lifetimes=Lifetimes(),
    )
    signer.start()
    yield (
        Mint(world.ledger, policies, signer, world.clock, new_id=lambda: secrets.token_urlsafe(16), meter=Unmetered()),
        policies,
    )
    signer.close()


def minted(mint, caller, *asks):
    return mint.finish(mint.reserve(caller, asks or (ASK,), request(principal=caller.principal)).result(10))


def test_what_the_policy_allows_is_minted(world, behind):
    mint, _ = behind
    size = world.size
    [one] = minted(mint, world.acme)
    assert (one.index, one.grant, world.size) == (size, "acme-evaluation", size + 1)


def test_p3_a_block_that_this_broker_has_not_heard_of_is_never_missed(world, behind):
    mint, policies = behind
    caller, version = world.acme, policies.current().version
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    assert policies.current().version == version
    size = world.size
    with pytest.raises(Blocked):
        minted(mint, caller)
    assert world.size == size
    world.reinstate(OPS, Selector.of(partner="acme"), reason="x", request=request())
    # A reinstatement may be missed until the feed's next look: that is the safe side.
    policies.refresh()
    assert minted(mint, caller)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("realm: evaluation, models: [mythos, oracle]", "realm: evaluation, models: [oracle]", NotGranted),
        ("users: [alice], workloads: [nightly], ttl", "users: [], workloads: [nightly], ttl", NotGranted),
        ('  - {id: "spiffe://acme.example/ci", role: harness, partner: acme, workload: nightly}\n', "", Unauthenticated),
        ('"spiffe://acme.example/ci", role: harness, partner: acme, workload: nightly', '"spiffe://acme.example/ci", role: auditor', Forbidden),
    ],
    ids=["model", "user", "principal", "role"],
)  # fmt: skip
def test_p3_a_policy_that_this_broker_has_not_heard_of_decides(world, behind, old, new, refusal):
    mint, _ = behind
    caller = world.acme
    assert POLICY.count(old) == 1
    world.apply(POLICY.replace(old, new))
    size = world.size
    with pytest.raises(refusal):
        minted(mint, caller)
    assert world.size == size


def test_p3_a_run_that_was_closed_elsewhere_mints_nothing(world, behind):
    mint, _ = behind
    run = world.open_run(world.acme)
    ask = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci", run.id)
    assert minted(mint, world.acme, ask)
    world.runs.close(world.acme, run.id, request("close"))
    size = world.size
    with pytest.raises(RunEnded):
        minted(mint, world.acme, ASK, ask)
    assert world.size == size


def test_p3_a_storm_of_single_revocations_starves_no_mint(world, behind):
    mint, policies = behind
    version = policies.current().version
    for number in range(50):
        selector = Selector.of(token=f"token-{number:016}")
        world.revoke(OPS, selector, reason="x", whole_realm=False, request=request(str(number)))
    assert minted(mint, world.acme)
    # Not even decided again.
    assert policies.current().version == version


def test_p10_a_token_whose_entry_could_not_be_read_again_is_not_minted(world, behind):
    """Actors within actors have more than one spelling, and the ledger's entries have one."""
    mint, policies = behind
    in_force, now = policies.current(), world.clock.now()
    claims = claims_for(ASK, Allowed("acme-evaluation", 60), world.acme.principal, in_force.policy, now, "t" * 22)

    def record(act):
        return mint.record(
            world.acme,
            replace(claims, act=act),
            "acme-evaluation",
            request(principal=world.acme.principal),
            in_force=in_force,
            at=now,
            guards=(),
        )

    inner = {"sub": "acme/workload/nightly"}
    size = world.size
    with pytest.raises(Defect, match="spelling"):
        record({"sub": "acme/workload/weekly", "act": inner})
    assert world.size == size
    [one] = mint.finish(record({"act": inner, "sub": "acme/workload/weekly"}))
    assert (one.index, world.size) == (size, size + 1)
