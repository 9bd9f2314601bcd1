"""Identities of a real OIDC provider: OpenBao logs a human in, vouches for a program, rotates its keys and is away."""

import json
import os
import subprocess
import urllib.parse
import urllib.request

import grpc
import pytest

from broker.edge.cli.context import Context, Login, write_context
from broker.edge.cli.kept_login import read_login
from broker.token.foreign import parse_foreign
from broker.token.keys import public_jwk, thumbprint
from broker.v1 import status_pb2, status_pb2_grpc, tokens_pb2, tokens_pb2_grpc
from tests.edge.test_callers import refusal
from tests.served import BROKER, POLICY, Served, request_id

pytest_plugins = ["tests.fixtures_openbao"]

AUTHORIZE = "identity/oidc/provider/default/authorize"


class Directory:
    """An OpenBao that is set up as the provider of a human, carol, and of programs."""

    def __init__(self, bao):
        self.bao = bao
        bao.must("POST", "sys/auth/userpass", {"type": "userpass"})
        policy = f'path "{AUTHORIZE}" {{ capabilities = ["read", "update"] }}'
        bao.must("POST", "sys/policies/acl/people", {"policy": policy})
        bao.must("POST", "auth/userpass/users/carol", {"password": "of-a-test", "token_policies": ["people"]})
        client = {"redirect_uris": ["http://127.0.0.1/callback"], "client_type": "public", "assignments": ["allow_all"]}
        bao.must("POST", "identity/oidc/client/broker", {**client, "id_token_ttl": "1h"})
        self.client_id = bao.must("GET", "identity/oidc/client/broker")["data"]["client_id"]
        self.issuer = f"{bao.address}/v1/identity/oidc/provider/default"
        key = {"algorithm": "ES256", "allowed_client_ids": ["*"], "rotation_period": "24h", "verification_ttl": "24h"}
        bao.must("POST", "identity/oidc/key/programs", key)
        bao.must("POST", "identity/oidc/role/ci", {"key": "programs", "ttl": "10m", "client_id": "broker"})
        # A program logs in to OpenBao by itself; here with a password, too.
        policy = 'path "identity/oidc/token/ci" { capabilities = ["read"] }'
        bao.must("POST", "sys/policies/acl/programs", {"policy": policy})
        bao.must("POST", "auth/userpass/users/ci", {"password": "of-a-test", "token_policies": ["programs"]})
        self.program_issuer = f"{bao.address}/v1/identity/oidc"
        self.subjects = {name: self.log_in(name)["entity_id"] for name in ("carol", "ci")}

    def log_in(self, name):
        return self.bao.must("POST", f"auth/userpass/login/{name}", {"password": "of-a-test"})["auth"]

    def program_token(self):
        token = self.log_in("ci")["client_token"]
        status, answer = self.bao.ask("GET", "identity/oidc/token/ci", token=token)
        assert status == 200, answer
        return answer["data"]["token"]

    def browser(self, said):
        """Do what OpenBao's own pages do: log in, ask for the code, and go back with it."""
        url = said.removeprefix("log in at: ").strip()
        assert url.startswith(f"{self.bao.address}/ui/vault/identity/oidc/provider/default/authorize?")
        query = url.partition("?")[2]
        token = self.log_in("carol")["client_token"]
        status, answer = self.bao.ask("GET", f"{AUTHORIZE}?{query}", token=token)
        assert status == 200, answer
        back = dict(urllib.parse.parse_qsl(query))["redirect_uri"]
        found = urllib.parse.urlencode({"code": answer["code"], "state": answer["state"]})
        with urllib.request.urlopen(f"{back}?{found}", timeout=20) as page:
            assert "You are logged in" in page.read().decode()


@pytest.fixture(scope="module")
def directory(sealed_vault):
    return Directory(sealed_vault)


@pytest.fixture(scope="module")
def broker(directory, tmp_path_factory):
    bao = directory.bao
    providers = f"""\
providers:
  people: {{kind: oidc, for: humans, issuer: "{directory.issuer}", audience: "{directory.client_id}"}}
  programs: {{kind: oidc, for: workloads, issuer: "{directory.program_issuer}", audience: broker}}
"""
    principals = f"""\
  - {{id: carol, role: admin, identity: {{provider: people, claims: {{sub: "{directory.subjects["carol"]}"}}}}}}
  - {{id: acme-ci, role: harness, partner: acme, workload: nightly, identity: {{provider: programs, claims: {{sub: "{directory.subjects["ci"]}"}}}}}}
"""
    place = f'cloud: {{identity: {{provider: programs, claims: {{sub: "{directory.subjects["ci"]}"}}}}}}'
    policy = POLICY.replace("realms:\n", f"{providers}realms:\n", 1) + principals
    policy = policy.replace("environments: {acme-ci: {", f"environments: {{{place}, acme-ci: {{", 1)
    policy = policy.replace("environments: [acme-ci]", "environments: [acme-ci, cloud]")
    identity = f'allow_private = ["127.0.0.1:{bao.port}"]\nca_file = "{bao.tls.ca}"\n'
    with Served(tmp_path_factory.mktemp("broker"), policy=policy, identity=identity) as broker:
        yield broker


@pytest.fixture
def home(broker, directory, tmp_path):
    login = Login(f"127.0.0.1:{broker.login_port}", directory.issuer, directory.client_id, directory.bao.tls.ca)
    write_context(
        Context(broker.endpoint, broker.authority.ca, tmp_path / "trust.json", {}, login=login),
        tmp_path / "broker" / "context.json",
    )
    return tmp_path


def run(home, *arguments):
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        [BROKER, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def logged_in(home, directory):
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    process = subprocess.Popen(
        [BROKER, "login", "--no-browser", "-o", "json", "--timeout", "50s"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        directory.browser(process.stderr.readline())
    finally:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def mint(broker, token):
    spec = tokens_pb2.TokenSpec(realm="evaluation", partner="acme", models=["mythos"])
    stub = tokens_pb2_grpc.TokenServiceStub(broker.login_channel(token))
    return stub.Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec), timeout=20).token


def test_a_human_of_openbao_logs_in_and_is_an_admin_bound_to_a_key_of_their_own(broker, directory, home):
    told = logged_in(home, directory)
    assert told["issuer"] == directory.issuer
    assert told["subject"] == directory.subjects["carol"]
    assert told["bound"] is True
    kept = read_login(home / "broker" / "login.json")
    claims = parse_foreign(kept.token).claims
    assert claims["nonce"] == thumbprint(public_jwk(kept.key.public_key()))
    # Asked for by max_age, so that approvals can demand a recent login.
    assert isinstance(claims["auth_time"], int)
    done = run(home, "revoke", "--partner", "globex", "--reason", "a test", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert run(home, "logout").returncode == 0


def test_a_program_of_openbao_mints_with_its_identity_token(broker, directory):
    assert mint(broker, directory.program_token()).token


def test_a_human_is_no_program_and_a_program_no_human(broker, directory, home):
    logged_in(home, directory)
    human = read_login(home / "broker" / "login.json").token
    assert refusal(lambda: mint(broker, human))[0] is grpc.StatusCode.PERMISSION_DENIED
    stub = status_pb2_grpc.StatusServiceStub(broker.login_channel(directory.program_token()))
    found = refusal(lambda: stub.GetStatus(status_pb2.GetStatusRequest(), timeout=20))
    assert found[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_token_for_another_of_openbaos_clients_is_nobody_here(broker, directory):
    directory.bao.must("POST", "identity/oidc/role/ci", {"key": "programs", "ttl": "10m", "client_id": "another"})
    try:
        found = refusal(lambda: mint(broker, directory.program_token()))
    finally:
        directory.bao.must("POST", "identity/oidc/role/ci", {"key": "programs", "ttl": "10m", "client_id": "broker"})
    assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def test_openbao_rotates_its_keys_and_old_and_new_tokens_are_good(broker, directory):
    old = directory.program_token()
    assert mint(broker, old)
    directory.bao.must("POST", "identity/oidc/key/programs/rotate", {"verification_ttl": "24h"})
    assert mint(broker, old)
    # OpenBao publishes the next key before it signs with it, so there is nothing to wait for.
    assert mint(broker, directory.program_token())


def test_openbao_stands_still_and_whom_it_vouched_for_goes_on(broker, directory):
    token = directory.program_token()
    other = directory.program_token()
    assert mint(broker, token)
    directory.bao.pause()
    try:
        assert mint(broker, token)
        # A token that nobody has seen before needs only the keys in hand.
        assert mint(broker, other)
    finally:
        directory.bao.resume()
