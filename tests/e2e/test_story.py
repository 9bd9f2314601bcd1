"""The story of issue and design: a partner's CI, a human who approves, a run that outlives both, and its end."""

import json
import os
import re
import ssl
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.edge.cli.context import Context, Identity, Login, write_context
from broker.errors import Blocked, RunEnded, Unauthenticated
from broker.sdk import Client, KeyIdentity, Revoked, TokenIdentity
from tests.authority import Authority
from tests.issuer import AUDIENCE, Issuer
from tests.served import BROKER, Served
from tests.waiting import eventually

TESTS = 1_000
DENIED = "the-job-on-thursday"


def policy(sso: Issuer, ci: Issuer) -> str:
    return f"""\
version: 1
providers:
  sso: {{kind: oidc, for: humans, issuer: "{sso.url}", audience: {AUDIENCE}}}
  actions: {{kind: github, for: workloads, issuer: "{ci.url}", audience: {AUDIENCE}}}
groups:
  board: [carol]
realms:
  evaluation: {{issuer: "https://broker.example/evaluation", audience: models.evaluation, max_ttl: 1h, lease: 3s, heartbeat: 1s, subjects: both}}
models: [mythos, oracle]
partners:
  acme:
    users: [alice]
    workloads: [evals]
    environments:
      actions: {{identity: {{provider: actions, claims: {{repository_id: "456", repository_owner_id: "123"}}}}}}
grants:
  - id: acme-evaluation
    partner: acme
    realm: evaluation
    models: [mythos, oracle]
    environments: [actions]
    users: [alice]
    workloads: [evals]
    ttl: {{default: 30m, max: 1h}}
    limits: {{tokens_per_run: 5000}}
    delegation: 1
    approvals: {{needed: 1, group: board}}
principals:
  - {{id: acme-ci, role: harness, partner: acme, workload: evals, identity: {{provider: actions, claims: {{repository_id: "456", repository_owner_id: "123"}}}}}}
  - {{id: alice, role: harness, partner: acme, user: alice, identity: {{provider: sso, claims: {{sub: "u-alice"}}}}}}
  - {{id: carol, role: approver, identity: {{provider: sso, claims: {{sub: "u-carol"}}}}}}
  - {{id: "spiffe://lab.example/ops", role: admin}}
  - {{id: "spiffe://lab.example/gateway", role: verifier, realm: evaluation}}
"""  # fmt: skip


class Laptop:
    """A person's machine: the command line, a browser, and a context file that leads to the broker."""

    def __init__(self, broker: Served, sso: Issuer, home: Path, identity: str = "admin") -> None:
        papers = broker.papers[identity]
        write_context(
            Context(
                endpoint=broker.endpoint,
                ca=broker.authority.ca,
                trust=broker.trust(),
                identities={identity: Identity(papers.certificate, papers.key, f"spiffe://lab.example/{identity}")},
                admin=identity,
                login=Login(f"127.0.0.1:{broker.login_port}", sso.url, AUDIENCE, sso.papers.ca),
            ),
            home / "broker" / "context.json",
        )
        self._sso = sso
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home)}

    def run(self, *words: str, typed: str | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [BROKER, *words],
            env=self._environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def does(self, *words: str, typed: str | None = None) -> str:
        ended = self.run(*words, typed=typed)
        assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
        return ended.stdout

    def log_in(self, subject: str) -> None:
        self._sso.offer_logins(subject)
        with subprocess.Popen(
            [BROKER, "login", "--no-browser"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as login:
            assert login.stderr is not None
            found = re.search(r"https://\S+", login.stderr.readline())
            assert found is not None
            trusted = ssl.create_default_context(cafile=str(self._sso.papers.ca))
            urllib.request.urlopen(found[0], context=trusted, timeout=30).close()
            login.communicate(timeout=60)
        assert login.returncode == 0


@pytest.fixture
def stage(tmp_path):
    papers = Authority(tmp_path / "issuers").server()
    with ExitStack() as stack:
        sso, ci = (stack.enter_context(Issuer(papers, path=path)) for path in ("/sso", "/actions"))
        settings = f'allow_private = ["{sso.place}", "{ci.place}"]\nca_file = "{papers.ca}"\n'
        yield stack.enter_context(Served(tmp_path, policy=policy(sso, ci), identity=settings)), sso, ci


def test_a_partners_week(stage, tmp_path):
    broker, sso, ci = stage
    carol = Laptop(broker, sso, tmp_path / "carol")
    admin = Laptop(broker, sso, tmp_path / "admin")
    gateway = broker.verifier()

    # Monday. A job of acme's CI has an identity token of its provider, and alice's, who started it. Both end soon.
    job = TokenIdentity(token=ci.github_token(), ca=broker.authority.ca)
    harness = Client.connect(f"127.0.0.1:{broker.login_port}", identity=job)
    alices = sso.token(sub="u-alice")
    wanted = {
        "realm": "evaluation",
        "partner": "acme",
        "models": ["mythos", "oracle"],
        "user": "alice",
        "workload": "evals",
    }

    # It cannot open a run by itself: the grant wants a human's word, and the harness can wait for it.
    asked = harness.request_approval(purpose="run", **wanted)
    assert asked.state == "waiting"

    # Carol logs in elsewhere, reads what she is asked to sign, and signs it.
    carol.log_in("u-carol")
    assert asked.id in carol.does("approval", "list")
    assert "mythos" in carol.does("approval", "show", asked.id)
    carol.does("approval", "approve", asked.id, "--yes")
    assert harness.wait_approval(asked.id, timeout_s=60).state == "approved"

    key_file = tmp_path / "run.json"
    with harness.run(**wanted, user_token=alices, approval=asked.id, key_file=key_file) as run:
        # A thousand tests, each its own token, all for alice by way of her workload.
        with ThreadPoolExecutor(64) as pool:
            tokens = list(pool.map(lambda number: run.token(test=f"case-{number}"), range(TESTS)))
        broker.until_accepted(gateway, tokens[-1])
        proofs = [gateway.verify(token, model="mythos") for token in tokens]
        assert len({proof.claims.jti for proof in proofs}) == TESTS
        assert {(proof.claims.sub, proof.claims.act["sub"]) for proof in proofs} == {
            ("acme/user/alice", "acme/workload/evals")
        }

        # One test runs an agent in a sandbox, which must not hold the run's key: it gets a child of one model.
        child = run.exchange(tokens[7], models=["mythos"], lifetime_s=600)
        broker.until_accepted(gateway, child.text)
        assert gateway.verify(child.text, model="mythos").claims.parents == (proofs[7].claims.jti,)
        run.leave()

    # Tuesday. The job's and alice's logins have ended: their provider does not know them any more.
    for issuer in (sso, ci):
        issuer.stop()
    # The broker was killed and is started again; the harness was, too, and has nothing but the run's key.
    broker.kill()
    broker.start()
    again = Client.connect(f"127.0.0.1:{broker.login_port}", identity=KeyIdentity(ca=broker.authority.ca))
    with again.resume(key_file) as run:
        late = run.token(test="case-on-tuesday")
        broker.until_accepted(gateway, late)
        assert gateway.verify(late, model="oracle").claims.user == "alice"
        assert gateway.verify(tokens[0], model="mythos")

        # Wednesday. The contract with acme ends.
        answer = json.loads(
            admin.does("revoke", "--partner", "acme", "--reason", "the contract ended", "--wait", "-o", "json")
        )
        for token in (tokens[0], tokens[7], child.text, late):
            with pytest.raises(Revoked):
                gateway.verify(token, model="mythos")
        with pytest.raises((RunEnded, Blocked, Unauthenticated)):
            run.token(test="case-on-wednesday")
        run.leave()

    # Why? The token says so, and so does the denial of the next job that tries.
    told = admin.does("explain", "token", typed=child.text)
    assert "partner=acme" in told
    assert str(answer["index"]) in told
    for issuer, name, token in ((sso, "alice", sso.token(sub="u-alice")), (ci, "job", ci.github_token())):
        issuer.start()
        (tmp_path / f"{name}.jwt").write_text(token)
    words = ("token", "mint", "--realm", "evaluation", "--partner", "acme", "--user", "alice", "--workload", "evals")
    words += ("--model", "mythos", "--request-id", DENIED, "--token-file", str(tmp_path / "job.jwt"))
    words += ("--user-token-file", str(tmp_path / "alice.jwt"))
    # Its provider was away, and is asked again after a while.
    eventually(lambda: admin.run(*words).returncode == 3, "the denial", within_s=60)
    assert "block partner=acme" in admin.does("explain", "denial", DENIED)
    ways = admin.does("explain", "path", "--model", "mythos", "--realm", "evaluation")
    assert "acme-evaluation" in ways
    assert "carol" in ways

    # All of it is in the log, and a stranger finds it in order.
    (tmp_path / "trust.json").write_text(admin.does("trust"))
    admin.does("audit", "export", str(tmp_path / "log"))
    found = json.loads(
        admin.does("audit", "verify", str(tmp_path / "log"), "--trust", str(tmp_path / "trust.json"), "-o", "json")
    )
    assert found["kinds"]["approval-given"] == found["kinds"]["approval-spent"] == 1
    assert found["kinds"]["token-minted"] > TESTS
    gateway.close()
    harness.close()
    again.close()
