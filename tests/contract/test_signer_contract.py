"""The Signer port's promises: keys in memory under a local or a Vault root, and keys in Vault transit."""

import itertools
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.transit_signer import TransitSigner
from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_root import VaultRoot
from broker.adapters.vault_session import VaultSession
from broker.adapters.vault_transit import TransitKeys
from broker.errors import SignerUnavailable, StoreUnavailable, Untrusted
from broker.service.ports import RealmKeys, Root
from broker.token.keys import Purpose, check_certificate, verify_es256
from tests.moved_clock import MovedClock
from tests.openbao import OpenBao
from tests.tcp_proxy import Behaviour, TcpProxy
from tests.waiting import eventually, succeeds

pytest_plugins = ["tests.fixtures_openbao"]

EVALUATION = RealmKeys("evaluation", "https://evaluation.example.org", "evaluation.models", 600)
RESEARCH = RealmKeys("research", "https://research.example.org", "research.models", 600)
LIFE_S = 600
SETTLE_S = 3.1


@dataclass(frozen=True, slots=True)
class Published:
    realm: str
    purpose: Purpose
    kid: str
    certificate: str
    expires_at: datetime


class RootThatGoesAway:
    """A root that cannot be asked while `is_away`, or hangs until `returned` is set."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.is_away = False
        self.returned = threading.Event()
        self.returned.set()

    def public_jwk(self, realm: str) -> Sequence[Mapping[str, str]]:
        self._must_be_here()
        return self._root.public_jwk(realm)

    def sign(self, realm: str, message: bytes) -> tuple[str, bytes]:
        self._must_be_here()
        return self._root.sign(realm, message)

    def _must_be_here(self) -> None:
        assert self.returned.wait(timeout=30)
        if self.is_away:
            raise SignerUnavailable("the root is away")


@dataclass(eq=False)
class Signing:
    """A rotation with all around it."""

    clock: MovedClock
    rotation: KeyRotation = field(init=False)
    realms: list[RealmKeys] = field(default_factory=lambda: [EVALUATION, RESEARCH])
    published: list[Published] = field(default_factory=list)
    kids_at_publishing: list[bool] = field(default_factory=list)
    is_store_away: bool = False
    go_away: Callable[[], None] = lambda: None
    come_back: Callable[[], None] = lambda: None

    def publish(self, realm: str, purpose: Purpose, kid: str, certificate: str, expires_at: datetime) -> None:
        if self.is_store_away:
            raise StoreUnavailable("the store is away")
        self.kids_at_publishing.append(self.can_use(realm, purpose, certificate))
        self.published.append(Published(realm, purpose, kid, certificate, expires_at))

    def can_use(self, realm: str, purpose: Purpose, certificate: str) -> bool:
        try:
            return self.rotation.current(realm, purpose).certificate == certificate
        except SignerUnavailable:
            return False

    def token_certificates(self, realm: str) -> list[Published]:
        return [one for one in self.published if (one.realm, one.purpose) == (realm, Purpose.TOKEN)]


KINDS = ["memory over a file", "memory over Vault", "transit"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def signing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Signing]:
    if kind == "memory over a file":
        yield from _over_a_file(tmp_path)
    else:
        yield from _over_vault(
            request.getfixturevalue("vault"), request.getfixturevalue("login"), in_transit=kind == "transit"
        )


def _over_a_file(folder: Path) -> Iterator[Signing]:
    root = RootThatGoesAway(LocalRoot(folder / "keys", b"a passphrase"))
    made = Signing(MovedClock())
    made.rotation = KeyRotation(
        root,
        made.clock,
        realms=lambda: tuple(made.realms),
        publish=made.publish,
        make=make_memory_key,
        meter=PrometheusMeter(),
    )
    made.go_away, made.come_back = (lambda: setattr(root, "is_away", True)), (lambda: setattr(root, "is_away", False))
    yield made
    made.rotation.close()


def _over_vault(vault: OpenBao, login: AppRoleLogin, *, in_transit: bool) -> Iterator[Signing]:
    made, meter = Signing(MovedClock()), PrometheusMeter()
    with TcpProxy(vault.port) as proxy:
        session = VaultSession(vault.server(port=proxy.port), login, made.clock, meter)
        keys = TransitKeys(session, meter)
        transit = TransitSigner(keys, made.clock)
        made.rotation = KeyRotation(
            VaultRoot(keys),
            made.clock,
            realms=lambda: tuple(made.realms),
            publish=made.publish,
            make=transit.make if in_transit else make_memory_key,
            meter=meter,
        )

        def come_back() -> None:
            proxy.behave(Behaviour.FORWARD)
            # The circuit probes once a second.
            made.clock.advance(1.1)

        made.go_away, made.come_back = (lambda: proxy.behave(Behaviour.RESET)), come_back
        yield made
        made.rotation.close()
        transit.close()
        session.close()


def test_p9_a_key_vouches_for_what_it_signs_within_its_realm_and_purpose(signing: Signing) -> None:
    signing.rotation.rotate()
    for realm in (EVALUATION, RESEARCH):
        for purpose in (Purpose.TOKEN, Purpose.FEED):
            key = signing.rotation.current(realm.realm, purpose)
            trusted = check_certificate(key.certificate, signing.rotation.roots(realm.realm), purpose)
            now_s = signing.clock.now().timestamp()
            assert trusted.kid == key.kid
            assert trusted.not_before <= now_s <= trusted.signs_until == int(key.signs_until.timestamp())
            messages = [secrets.token_bytes(700) for _ in range(5)]
            signatures = key.sign(messages).result(timeout=5)
            assert [len(signature) for signature in signatures] == [64] * 5
            for message, signature in zip(messages, signatures, strict=True):
                assert verify_es256(trusted.public_key, signature, message)


def test_p8_a_certificate_is_worth_nothing_in_another_realm_or_for_another_purpose(signing: Signing) -> None:
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    with pytest.raises(Untrusted):
        check_certificate(key.certificate, signing.rotation.roots("research"), Purpose.TOKEN)
    with pytest.raises(Untrusted):
        check_certificate(key.certificate, signing.rotation.roots("evaluation"), Purpose.FEED)
    kids = {signing.rotation.current(r, p).kid for r in ("evaluation", "research") for p in Purpose}
    assert len(kids) == 6


def test_p9_a_certificate_is_published_before_its_key_can_be_used(signing: Signing) -> None:
    signing.rotation.rotate()
    signing.clock.advance(LIFE_S / 2 + 1)
    signing.rotation.rotate()
    # Three purposes in two realms, and the two token keys, which live shorter, once more.
    assert len(signing.published) == 8
    assert not any(signing.kids_at_publishing)


def test_p9_no_key_is_used_whose_certificate_could_not_be_published(signing: Signing) -> None:
    signing.is_store_away = True
    signing.rotation.rotate()
    with pytest.raises(SignerUnavailable, match="the store is away"):
        signing.rotation.current("evaluation", Purpose.TOKEN)
    signing.is_store_away = False
    signing.rotation.rotate()
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid == signing.published[0].kid


def test_a_big_batch_is_signed_in_order(signing: Signing) -> None:
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    public = check_certificate(key.certificate, signing.rotation.roots("evaluation"), Purpose.TOKEN).public_key
    messages = [f"message {number}".encode() for number in range(1000)]
    signatures = key.sign(messages).result(timeout=10)
    assert all(verify_es256(public, signature, m) for signature, m in zip(signatures, messages, strict=True))
    assert list(key.sign([]).result(timeout=5)) == []


def test_many_threads_get_each_their_own_signatures(signing: Signing) -> None:
    signing.rotation.rotate()
    keys = [signing.rotation.current(realm, Purpose.TOKEN) for realm in ("evaluation", "research")]
    public = {
        key.kid: check_certificate(key.certificate, signing.rotation.roots(realm), Purpose.TOKEN).public_key
        for key, realm in zip(keys, ("evaluation", "research"), strict=True)
    }
    good: list[bool] = []

    def sign(number: int) -> None:
        key = keys[number % 2]
        for _ in range(5):
            message = secrets.token_bytes(200)
            [signature] = key.sign([message]).result(timeout=10)
            good.append(verify_es256(public[key.kid], signature, message))

    threads = [threading.Thread(target=sign, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert good == [True] * 80


def test_the_next_certificate_is_published_early_and_used_only_when_verifiers_know_it(signing: Signing) -> None:
    signing.rotation.rotate()
    first = signing.rotation.current("evaluation", Purpose.TOKEN)
    signing.clock.advance(LIFE_S / 2 - 1)
    signing.rotation.rotate()
    assert len(signing.token_certificates("evaluation")) == 1
    signing.clock.advance(2)
    signing.rotation.rotate()
    assert len(signing.token_certificates("evaluation")) == 2
    assert signing.rotation.current("evaluation", Purpose.TOKEN).certificate == first.certificate
    signing.clock.advance(SETTLE_S)
    second = signing.rotation.current("evaluation", Purpose.TOKEN)
    assert second.certificate == signing.token_certificates("evaluation")[1].certificate
    assert second.signs_until > first.signs_until


def test_a_later_certificate_of_the_same_key_covers_what_an_earlier_one_did(signing: Signing) -> None:
    """A verifier keeps one certificate for a key, the one that lasts longest."""
    for _ in range(3):
        signing.rotation.rotate()
        signing.clock.advance(LIFE_S / 2 + 1)
    trust = signing.rotation.roots("evaluation")
    held = [
        check_certificate(one.certificate, trust, Purpose.TOKEN) for one in signing.token_certificates("evaluation")
    ]
    assert len(held) == 3
    for earlier, later in itertools.pairwise(held):
        if earlier.kid == later.kid:
            assert later.not_before <= earlier.not_before
            assert later.signs_until > earlier.signs_until
            assert later.expires > earlier.expires


def test_a_certificate_lasts_as_long_as_the_longest_token_under_it(signing: Signing) -> None:
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    trusted = check_certificate(key.certificate, signing.rotation.roots("evaluation"), Purpose.TOKEN)
    assert trusted.expires >= trusted.signs_until + EVALUATION.max_ttl_s
    assert signing.published[0].expires_at.timestamp() >= trusted.expires


def test_p9_without_its_root_a_key_signs_on_until_its_end_and_not_a_moment_longer(signing: Signing) -> None:
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    signing.go_away()
    signing.clock.advance(LIFE_S - 2)
    signing.rotation.rotate()
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid == key.kid
    signing.clock.advance(2.1)
    for _ in range(2):
        with pytest.raises(SignerUnavailable) as gone:
            signing.rotation.current("evaluation", Purpose.TOKEN)
        assert gone.value.retry_after_s is not None
        signing.rotation.rotate()
    # Revoking goes on: the feed's key was certified a day ahead.
    feed = signing.rotation.current("evaluation", Purpose.FEED)
    assert feed.sign([b"frame"]).result(timeout=5)
    signing.come_back()
    signing.rotation.rotate()
    assert signing.rotation.current("evaluation", Purpose.TOKEN).signs_until > key.signs_until


def test_what_has_ended_is_dropped_also_for_a_realm_that_the_policy_no_longer_names(signing: Signing) -> None:
    signing.rotation.rotate()
    signing.realms.remove(RESEARCH)
    signing.clock.advance(24 * 3600 + 1)
    signing.rotation.rotate()
    assert {slot[0] for slot in signing.rotation._held} == {"evaluation"}
    assert all(len(held) == 1 for held in signing.rotation._held.values())


def test_a_realm_that_the_policy_adds_gets_keys(signing: Signing) -> None:
    signing.realms.remove(RESEARCH)
    signing.rotation.start()
    with pytest.raises(SignerUnavailable):
        signing.rotation.current("research", Purpose.TOKEN)
    signing.realms.append(RESEARCH)
    signing.rotation.wake()
    eventually(lambda: succeeds(lambda: signing.rotation.current("research", Purpose.TOKEN)), "keys for the realm")


def test_a_realm_with_longer_tokens_gets_a_certificate_that_covers_them(signing: Signing) -> None:
    signing.rotation.rotate()
    signing.realms[0] = replace(EVALUATION, max_ttl_s=86_400)
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    trusted = check_certificate(key.certificate, signing.rotation.roots("evaluation"), Purpose.TOKEN)
    assert trusted.expires >= trusted.signs_until + 86_400


def test_p12_a_key_does_not_show_its_private_half(signing: Signing) -> None:
    signing.rotation.rotate()
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    assert "PrivateKey" not in repr(key)
    assert key.certificate in repr(key)


def test_closed_it_has_no_keys(signing: Signing) -> None:
    signing.rotation.start()
    signing.rotation.close()
    with pytest.raises(SignerUnavailable):
        signing.rotation.current("evaluation", Purpose.TOKEN)


@pytest.mark.parametrize("kind", KINDS[:2], indirect=True)
def test_a_revoked_key_in_memory_is_not_used_any_more_and_replaced(signing: Signing) -> None:
    signing.rotation.start()
    revoked = signing.rotation.current("evaluation", Purpose.TOKEN)
    signing.rotation.forget([revoked.kid])
    assert not signing.can_use("evaluation", Purpose.TOKEN, revoked.certificate)
    eventually(lambda: succeeds(lambda: signing.rotation.current("evaluation", Purpose.TOKEN)), "a new key")
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid != revoked.kid


@pytest.mark.parametrize("kind", KINDS[2:], indirect=True)
def test_a_revoked_key_in_transit_is_not_certified_again_until_it_is_rotated_in_vault(
    signing: Signing, vault: OpenBao
) -> None:
    signing.rotation.rotate()
    revoked = signing.rotation.current("evaluation", Purpose.TOKEN)
    signing.rotation.forget([revoked.kid])
    signing.rotation.rotate()
    with pytest.raises(SignerUnavailable, match="revoked; rotate it in Vault"):
        signing.rotation.current("evaluation", Purpose.TOKEN)
    assert [one.kid for one in signing.token_certificates("evaluation")] == [revoked.kid]
    vault.must("POST", "transit/keys/broker-evaluation-tokens/rotate")
    signing.rotation.rotate()
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid != revoked.kid


@pytest.mark.parametrize("kind", KINDS[2:], indirect=True)
def test_a_new_version_in_transit_is_certified_and_used(signing: Signing, vault: OpenBao) -> None:
    signing.rotation.rotate()
    old = signing.rotation.current("evaluation", Purpose.TOKEN)
    vault.must("POST", "transit/keys/broker-evaluation-tokens/rotate")
    # What was certified signs on: the version is pinned.
    assert old.sign([b"m"]).result(timeout=5)
    signing.clock.advance(LIFE_S / 2 + 1)
    signing.rotation.rotate()
    signing.clock.advance(SETTLE_S)
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid != old.kid


@pytest.mark.parametrize("kind", KINDS[2:], indirect=True)
def test_a_version_that_vault_refuses_to_sign_with_is_replaced_at_once(signing: Signing, vault: OpenBao) -> None:
    signing.rotation.start()
    old = signing.rotation.current("evaluation", Purpose.TOKEN)
    vault.must("POST", "transit/keys/broker-evaluation-tokens/rotate")
    newest = vault.must("GET", "transit/keys/broker-evaluation-tokens")["data"]["latest_version"]
    vault.must("POST", "transit/keys/broker-evaluation-tokens/config", {"min_encryption_version": newest})
    with pytest.raises(SignerUnavailable, match="refused to sign"):
        old.sign([b"m"]).result(timeout=5)
    eventually(lambda: succeeds(lambda: signing.rotation.current("evaluation", Purpose.TOKEN)), "a key", within_s=5)
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid != old.kid
    assert signing.rotation.current("evaluation", Purpose.TOKEN).sign([b"m"]).result(timeout=5)


@pytest.mark.parametrize("kind", KINDS[:1], indirect=True)
def test_forgetting_a_key_never_waits_for_a_root_that_hangs(signing: Signing, tmp_path: Path) -> None:
    """The feed calls `forget` when the policy moves: if it waited, every verifier's lease would run out (P7, P11)."""
    signing.rotation.rotate()
    root = signing.rotation._root
    assert isinstance(root, RootThatGoesAway)
    key = signing.rotation.current("evaluation", Purpose.TOKEN)
    root.returned.clear()
    signing.clock.advance(LIFE_S / 2 + 1)
    rotating = threading.Thread(target=signing.rotation.rotate)
    rotating.start()
    eventually(signing.rotation._turn.locked, "the rotation hangs")
    forgetting = threading.Thread(target=lambda: signing.rotation.forget([key.kid]))
    forgetting.start()
    forgetting.join(timeout=2)
    assert not forgetting.is_alive()
    assert not signing.can_use("evaluation", Purpose.TOKEN, key.certificate)
    root.returned.set()
    rotating.join(timeout=10)
    # The rotation that was under way does not bring it back.
    assert signing.rotation.current("evaluation", Purpose.TOKEN).kid != key.kid


@pytest.mark.parametrize("kind", KINDS[:1], indirect=True)
def test_a_defect_in_one_realms_root_does_not_stop_the_others(
    signing: Signing, caplog: pytest.LogCaptureFixture
) -> None:
    root = signing.rotation._root
    assert isinstance(root, RootThatGoesAway)

    class Defective(RootThatGoesAway):
        def public_jwk(self, realm: str) -> Sequence[Mapping[str, str]]:
            if realm == "evaluation":
                raise KeyError("a defect")
            return super().public_jwk(realm)

    signing.rotation._root = Defective(root)
    signing.rotation.rotate()
    assert signing.rotation.current("research", Purpose.TOKEN)
    with pytest.raises(SignerUnavailable, match="a defect in the broker"):
        signing.rotation.current("evaluation", Purpose.TOKEN)
    assert "could not be rotated" in caplog.text


def test_lifetimes_say_how_long_each_purpose_signs() -> None:
    assert Lifetimes().of(Purpose.TOKEN) == timedelta(minutes=10)
    assert Lifetimes().of(Purpose.FEED) == timedelta(hours=24)
