"""A realm, a certificate authority, a feed server, and verifiers that are closed at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.sdk import Identity, Verifier
from broker.sdk.stream import Pace
from tests.authority import Authority, Issued
from tests.feed_server import FeedServer
from tests.realm_keys import RealmKeys

QUICK = Pace(
    echo_every_s=0.3, echo_again_s=0.1, ack_every_s=0.1, first_frame_s=1.0, backoff_first_s=0.02, backoff_most_s=0.2
)
Connect = Callable[..., Verifier]


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server_certificate(authority) -> Issued:
    return authority.server()


@pytest.fixture(scope="session")
def identity(authority) -> Identity:
    issued = authority.client("spiffe://example.org/verifier/one")
    return Identity(issued.certificate, issued.key, issued.ca)


@pytest.fixture(scope="session")
def keys() -> RealmKeys:
    return RealmKeys.of_today()


@pytest.fixture
def server(keys, server_certificate) -> Iterator[FeedServer]:
    with FeedServer(keys, server_certificate) as server:
        yield server


@pytest.fixture
def connect(keys, identity) -> Iterator[Connect]:
    """Connects verifiers with short intervals, and closes them."""
    made: list[Verifier] = []

    def connected(server: FeedServer | str | list[str], **options) -> Verifier:
        endpoint = server.endpoint if isinstance(server, FeedServer) else server
        filled = {"realm": keys.realm, "trust": keys.trust, "identity": identity, "pace": QUICK, **options}
        made.append(Verifier.connect(endpoint, **filled))
        return made[-1]

    yield connected
    for verifier in made:
        verifier.close()


@pytest.fixture
def verifier(server, connect) -> Verifier:
    """Fresh, at the server's head."""
    one = connect(server)
    one.wait_fresh(10)
    return one


@pytest.fixture
def state_dir(tmp_path) -> Path:
    return tmp_path / "state"
