"""`broker token exchange`: a child of a token, for a sandbox."""

from pathlib import Path

import click

from broker.edge.cli.binding import bind_option
from broker.edge.cli.command import Command, Name, Session, calls_broker, named, request_id_option
from broker.edge.cli.durations import Span
from broker.edge.cli.key_files import key_file_option, of_run, proven
from broker.edge.cli.minting import TOKEN_KEYS, minted_row
from broker.edge.cli.stdin import read_token
from broker.sdk.channels import Metadata
from broker.sdk.dpop import DpopKey
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from broker.v1 import tokens_pb2

PATH = "/broker.v1.TokenService/Exchange"


@click.command(
    cls=Command,
    examples=[
        "broker token exchange --model mythos --ttl 5m < token > child",
        "broker token exchange --workload sandbox --bind own < token > child",
        "broker token exchange --model mythos --key-file run.key < token > child",
    ],
    keys=f"{TOKEN_KEYS}, request_id.",
)
@click.option("--model", "models", type=Name(), multiple=True, help="Model. Repeat for more. Default: the parent's.")
@click.option("--ttl", type=Span(), help="Lifetime, as 90s, 10m or 1h; ends with the parent's at the latest.")
@named("--test", "Test, where the parent is of a run and of no test.")
@named("--workload", "Program of the partner that will act with the child.")
@bind_option
@click.option("--dpop-key", type=click.Path(), help="PEM file of the key that the parent is bound to, if it is.")
@key_file_option
@request_id_option
@calls_broker()
def exchange(
    session: Session,
    *,
    models: tuple[str, ...],
    ttl: int | None,
    test: str | None,
    workload: str | None,
    binding: tokens_pb2.Binding | None,
    dpop_key: str | None,
    key_file: Path | None,
    request_id: str,
) -> None:
    """Derive a child from the token on stdin, and print it, alone.

    It is never wider than its parent nor than the policy in force, and it dies with its parent. The output is
    a secret: keep it in a variable or a pipe.
    """
    token = read_token()
    unverified = decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)
    request = tokens_pb2.ExchangeRequest(
        request_id=request_id, subject_token=token, models=models, test=test, workload=workload, binding=binding
    )
    if ttl is not None:
        request.lifetime.FromSeconds(ttl)
    key = of_run(key_file, unverified.run or "")
    metadata: Metadata = (
        *(() if dpop_key is None else (("dpop", DpopKey.load(dpop_key).proof_for_exchange(PATH, token)),)),
        *(proven(key, "TokenService/Exchange", unverified.run, request) or ()),
    )
    with session.settings.connect(
        lambda context: context.for_partner(unverified.partner), by_key=key is not None
    ) as broker:
        child = broker.call(broker.tokens.Exchange, request, metadata=metadata).token
    session.output.show({**minted_row(child), "request_id": request_id}, child.token)
