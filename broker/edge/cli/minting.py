"""`broker token mint` and `broker explain`: asking for a token, and asking why."""

from pathlib import Path

import click

from broker.edge.cli.binding import bind_option
from broker.edge.cli.command import Command, Session, calls_broker, request_id_option
from broker.edge.cli.key_files import key_file_option, of_run, proven
from broker.edge.cli.output import instant
from broker.edge.cli.problems import without_hint
from broker.edge.cli.specs import explain_command, spec_options
from broker.edge.cli.user_tokens import user_token_option
from broker.errors import Blocked, LimitReached, NotGranted
from broker.v1 import tokens_pb2

MAX_BATCH = 1000
TOKEN_KEYS = "token, id, index, expires_at, grant"  # noqa: S105 - names of keys


@click.command(
    cls=Command,
    examples=[
        "broker token mint --realm evaluation --partner acme --user alice --model mythos",
        "broker token mint --realm evaluation --partner acme --workload ci --model mythos --model fable --ttl 10m",
        "broker token mint --realm evaluation --partner acme --user alice --model mythos --run $RUN --test case-7",
        "broker token mint --realm evaluation --partner acme --model mythos --run $RUN --key-file run.key",
        "broker token mint --realm evaluation --partner acme --user alice --model mythos --count 500 > tokens",
        "broker token mint --realm evaluation --partner acme --user alice --model mythos --bind own > token",
    ],
    keys=f"{TOKEN_KEYS}, request_id; with --count: tokens: [{TOKEN_KEYS}], request_id.",
)
@spec_options
@bind_option
@click.option("--count", type=click.IntRange(1, MAX_BATCH), help="Mint so many, all or none, and print one per line.")
@key_file_option
@user_token_option
@request_id_option
@calls_broker()
def mint(
    session: Session,
    *,
    spec: tokens_pb2.TokenSpec,
    binding: tokens_pb2.Binding | None,
    count: int | None,
    key_file: Path | None,
    user_token: str,
    request_id: str,
) -> None:
    """Mint a token and print it, alone.

    The output is a secret: keep it in a variable or a pipe. The environment is the caller's own, recognised
    from its certificate.
    """
    if binding is not None:
        spec.binding.CopyFrom(binding)
    key = of_run(key_file, spec.run)
    with session.settings.connect(lambda context: context.for_partner(spec.partner), by_key=key is not None) as broker:
        try:
            if count is None:
                request = tokens_pb2.MintRequest(request_id=request_id, spec=spec, user_token=user_token)
                proof = proven(key, "TokenService/Mint", spec.run, request)
                minted = [broker.call(broker.tokens.Mint, request, proof).token]
            else:
                batch = tokens_pb2.MintBatchRequest(request_id=request_id, specs=[spec] * count, user_token=user_token)
                proof = proven(key, "TokenService/MintBatch", spec.run, batch)
                minted = list(broker.call(broker.tokens.MintBatch, batch, proof).tokens)
        except NotGranted as denied:
            message, _ = without_hint(denied)
            see = f"{explain_command(spec)}; or, by its request id: broker explain denial {request_id}"
            raise NotGranted(message, hint=f"ask an admin, or see: {see}") from denied
        except (Blocked, LimitReached) as denied:
            message, hint = without_hint(denied)
            denied.message, denied.hint = message, f"{hint}; why: broker explain denial {request_id}"
            raise
    rows = [minted_row(token) for token in minted]
    result = rows[0] if count is None else {"tokens": rows}
    session.output.show({**result, "request_id": request_id}, "\n".join(token.token for token in minted))


def minted_row(token: tokens_pb2.MintedToken) -> dict[str, object]:
    """Return a token for `-o json`."""
    return {
        "token": token.token,
        "id": token.id,
        "index": token.index,
        "expires_at": instant(token.expires_at),
        "grant": token.grant,
    }
