"""`broker explain denial`, `token` and `path`: why it was denied, what became of it, who can get there."""

import hashlib

import click
from rich.console import Group, RenderableType
from rich.text import Text

from broker.edge.cli.command import Command, Name, Session, calls_broker, named
from broker.edge.cli.context import Context, Identity
from broker.edge.cli.explaining import RULE_KEYS, rules_json, rules_table
from broker.edge.cli.inspecting import unverified_parts
from broker.edge.cli.output import instant, plain, table, yes
from broker.edge.cli.stdin import read_token
from broker.v1 import policy_pb2 as pb


@click.command(
    "denial",
    cls=Command,
    examples=[
        "broker explain denial 3qv7c2QjT0mWm2Qf7d1JqA",
        "broker explain denial 3qv7c2QjT0mWm2Qf7d1JqA --partner acme -o json",
    ],
    keys=f"partner, principal, at, method, reason, message, {RULE_KEYS}, remedy, policy_version.",
)
@click.argument("request_id", type=Name())
@named("--partner", "Whose request it was; asks as its harness, if the context has one.")
@calls_broker()
def denial(session: Session, *, request_id: str, partner: str | None) -> None:
    """Say why a mint or a run was denied, by the id that was sent with the request (--request-id)."""

    def choose(context: Context) -> Identity:
        if partner is not None and partner in context.harness:
            return context.for_partner(partner)
        return context.for_admin()

    request = pb.ExplainDenialRequest(request_id=request_id, partner=partner or "")
    with session.settings.connect(choose) as broker:
        answer: pb.ExplainDenialResponse = broker.call(broker.policy.ExplainDenial, request)
    result = {
        "partner": answer.partner,
        "principal": answer.principal,
        "at": instant(answer.at),
        "method": answer.method,
        "reason": answer.reason,
        "message": answer.message,
        "rules": rules_json(answer.rules),
        "remedy": answer.remedy,
        "policy_version": answer.policy_version,
    }
    lines = [
        f"{answer.method} by {answer.principal} was denied at {instant(answer.at)} ({answer.reason}): {answer.message}",
        f"decided by policy version {answer.policy_version}",
    ]
    parts: list[RenderableType] = [*(Text(plain(line)) for line in lines), Text(), rules_table(answer.rules)]
    session.output.show(result, Group(*parts, *_remedy("what would have changed it", answer.remedy)))


@click.command(
    "token",
    cls=Command,
    examples=["broker explain token < token", "broker explain token 3qv7c2QjT0mWm2Qf7d1JqA -o json"],
    keys="alive, rule (alive, life, revocation, key, forged), detail, token, index, minted_at, expires_at, realm, "
    f"partner, user, workload, environment, models, run, by, grant, policy_version, revocations: [index], mintable, "
    f"{RULE_KEYS}, remedy.",
)
@click.argument("token_id", metavar="[ID]", type=Name(), required=False)
@named("--partner", "Whose token it is; asks as its harness, if the context has one.")
@calls_broker()
def token(session: Session, *, token_id: str | None, partner: str | None) -> None:
    """Say whether a token is alive, by what it is dead, and whether it would be minted today.

    Give its id, or the token itself on stdin: it is not sent, only its id and the hash of what is signed in it.
    """

    def choose(context: Context) -> Identity:
        if partner is not None and partner in context.harness:
            return context.for_partner(partner)
        return context.for_admin()

    request = pb.ExplainTokenRequest(token=token_id) if token_id is not None else _request_of(read_token())
    with session.settings.connect(choose) as broker:
        answer: pb.ExplainTokenResponse = broker.call(broker.policy.ExplainToken, request)
    session.output.show(_fate(answer), _fate_text(answer))


def _request_of(unverified_token: str) -> pb.ExplainTokenRequest:
    """Return what may be sent of a token: it is a secret, and stays here (P12)."""
    _, unverified = unverified_parts(unverified_token)
    signed = unverified_token.rpartition(".")[0]
    index = unverified.get("idx")
    return pb.ExplainTokenRequest(
        token=str(unverified.get("jti", "")),
        index=index if type(index) is int and 0 < index < 2**53 else 0,
        sha256=hashlib.sha256(signed.encode()).digest(),
    )


def _fate(answer: pb.ExplainTokenResponse) -> dict[str, object]:
    return {
        "alive": answer.alive,
        "rule": answer.rule,
        "detail": answer.detail,
        "token": answer.token,
        "index": answer.index,
        "minted_at": instant(answer.minted_at),
        "expires_at": instant(answer.expires_at),
        "realm": answer.realm,
        "partner": answer.partner,
        "user": answer.user or None,
        "workload": answer.workload or None,
        "environment": answer.environment,
        "models": list(answer.models),
        "run": answer.run or None,
        "by": answer.by,
        "grant": answer.grant,
        "policy_version": answer.policy_version,
        "revocations": list(answer.revocations),
        "mintable": answer.mintable,
        "rules": rules_json(answer.rules),
        "remedy": answer.remedy,
    }


def _fate_text(answer: pb.ExplainTokenResponse) -> Group:
    who = " by ".join(name for name in (answer.user, answer.workload) if name)
    lines = [
        f"{'alive' if answer.alive else 'dead'} ({answer.rule}): {answer.detail}",
        f"token {answer.token} at index {answer.index}, minted {instant(answer.minted_at)}, asked for by {answer.by}",
        f"for {who} of {answer.partner}: {' '.join(answer.models)} in {answer.realm} from {answer.environment}",
        f"allowed by grant {answer.grant}, of the policy applied at version {answer.policy_version}",
        f"minted again today: {yes(answer.mintable)}",
    ]
    parts: list[RenderableType] = [*(Text(plain(line)) for line in lines), Text(), rules_table(answer.rules)]
    return Group(*parts, *_remedy("what would change today's answer", answer.remedy))


@click.command(
    "path",
    cls=Command,
    examples=[
        "broker explain path --realm production --model mythos",
        "broker explain path --realm production --model mythos@eu-1 -o json",
    ],
    keys="version, ways: [partner, subjects, environments, grant, terms, callers, block (null: none)], "
    "changers: [by (policy, configuration, approval, provider, certificates, keys), who, what].",
)
@named("--realm", "Realm.", required=True)
@named("--model", "Model; a bare name covers its instances.", required=True)
@calls_broker()
def path(session: Session, *, realm: str, model: str) -> None:
    """List every way to a model: by whom it can be used, on what terms, and who can change it."""
    request = pb.ExplainPathRequest(realm=realm, model=model)
    with session.settings.connect(Context.for_admin) as broker:
        answer: pb.ExplainPathResponse = broker.call(broker.policy.ExplainPath, request)
    result = {
        "version": answer.version,
        "ways": [
            {
                "partner": way.partner,
                "subjects": list(way.subjects),
                "environments": list(way.environments),
                "grant": way.grant,
                "terms": list(way.terms),
                "callers": list(way.callers),
                "block": way.block or None,
            }
            for way in answer.ways
        ],
        "changers": [{"by": one.by, "who": one.who, "what": one.what} for one in answer.changers],
    }
    session.output.show(result, _path_text(answer, realm, model))


def _path_text(answer: pb.ExplainPathResponse, realm: str, model: str) -> Group:
    count = "1 way" if len(answer.ways) == 1 else f"{len(answer.ways)} ways"
    parts: list[RenderableType] = [Text(plain(f"{count} to {model} in {realm}, by policy version {answer.version}"))]
    for way in answer.ways:
        lines = [
            f"{way.partner}: {', '.join(way.subjects)} (grant {way.grant})",
            *(f"  from {place}" for place in way.environments),
            *(f"  {term}" for term in way.terms),
            *(f"  asked for by {caller}" for caller in way.callers),
            *([f"  closed now by {way.block}"] if way.block else []),
        ]
        parts += [Text(), *(Text(plain(line)) for line in lines)]
    rows = [(one.by, one.who, one.what) for one in answer.changers]
    return Group(*parts, Text(), table(["CHANGED BY", "WHO", "WHAT THEY CAN DO"], rows))


def _remedy(words: str, remedy: str) -> list[RenderableType]:
    return [Text(), Text(plain(f"{words}: {remedy}"))] if remedy else []
