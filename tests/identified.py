"""A broker process that knows people and programs by their identity tokens, and the issuers that vouch for them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.authority import Authority
from tests.issuer import AUDIENCE, UID, Issuer
from tests.served import POLICY, Served

PRINCIPALS = f"""\
  - {{id: "spiffe://lab.example/gateway-shared", role: verifier, realm: shared}}
  - {{id: acme-ci, role: harness, partner: acme, workload: nightly, identity: {{provider: github, claims: {{repository_id: "456", repository_owner_id: "123"}}}}}}
  - {{id: globex-pods, role: harness, partner: globex, workload: evals, identity: {{provider: cluster, claims: {{uid: {UID}}}}}}}
  - {{id: alice, role: harness, partner: acme, user: alice, identity: {{provider: sso, claims: {{sub: "u-alice"}}}}}}
  - {{id: bob, role: harness, partner: globex, user: bob, identity: {{provider: sso, claims: {{sub: "u-bob"}}}}}}
  - {{id: carol, role: admin, identity: {{provider: sso, claims: {{sub: "u-carol"}}}}}}
"""


class Identified(Served):
    """As Served, with the issuers `sso` (humans), `github` and `cluster` (workloads)."""

    def __init__(self, folder: Path, sso: Issuer, github: Issuer, cluster: Issuer) -> None:
        self.sso, self.github, self.cluster = sso, github, cluster
        places = ", ".join(f'"{one.place}"' for one in (sso, github, cluster))
        super().__init__(
            folder, policy=self.policy(), identity=f'allow_private = [{places}]\nca_file = "{sso.papers.ca}"\n'
        )

    def policy(self, *, principals: str = PRINCIPALS, networks: str = '["127.0.0.0/8", "::1/128"]') -> str:
        providers = f"""\
providers:
  sso: {{kind: oidc, for: humans, issuer: "{self.sso.url}", audience: {AUDIENCE}}}
  github: {{kind: github, for: workloads, issuer: "{self.github.url}", audience: {AUDIENCE}}}
  cluster: {{kind: kubernetes, for: workloads, issuer: "{self.cluster.url}", audience: {AUDIENCE}}}
"""
        text = POLICY.replace("realms:\n", f"{providers}realms:\n", 1) + principals
        text = text.replace(
            'environments: {acme-ci: {certificate: "spiffe://acme.example/ci"}}',
            'environments: {acme-ci: {certificate: "spiffe://acme.example/ci"}, github-ci: {identity: {provider: github, '
            f'claims: {{repository_id: "456", repository_owner_id: "123"}}}}, networks: {networks}}}}}',
        )
        text = text.replace(
            "    users: [bob]\n    environments: {globex-cluster: {",
            "    users: [bob]\n    workloads: [evals]\n    environments: {globex-pods: {identity: {provider: cluster, claims: "
            f"{{uid: {UID}}}}}}}, globex-cluster: {{",
        )
        text = text.replace("environments: [acme-ci]", "environments: [acme-ci, github-ci]")
        text = text.replace(
            "environments: [globex-cluster], users: [bob]",
            "environments: [globex-cluster, globex-pods], users: [bob], workloads: [evals]",
        )
        both = text.replace(
            "  research: {",
            '  shared: {issuer: "https://broker.example/shared", audience: models.shared, max_ttl: 1h, subjects: both}\n  research: {',
            1,
        )
        grant = "  - {id: acme-shared, partner: acme, realm: shared, models: [mythos], environments: [acme-ci, github-ci], users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}\n"
        return both.replace("grants:\n", f"grants:\n{grant}", 1)


@contextmanager
def identified(folder: Path) -> Iterator[Identified]:
    papers = Authority(folder / "issuers").server()
    with ExitStack() as stack:
        issuers = [stack.enter_context(Issuer(papers, path=path)) for path in ("/sso", "/github", "/cluster")]
        yield stack.enter_context(Identified(folder, *issuers))
