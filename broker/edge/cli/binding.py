"""The option that says to what a token shall be bound."""

import hashlib
import ssl
from pathlib import Path
from typing import Any

import click

from broker.errors import Invalid
from broker.token.binding import Bound, Method
from broker.v1 import tokens_pb2

OWN = "own"


class Binding(click.ParamType[tokens_pb2.Binding]):
    """`own`, `cert:FILE` or `jkt:THUMBPRINT`, as a message."""

    name = "binding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tokens_pb2.Binding:
        """Return the message, or say what is wrong."""
        if isinstance(value, tokens_pb2.Binding):
            return value
        kind, _, rest = str(value).partition(":")
        if value == OWN:
            return tokens_pb2.Binding(x5t_s256=b"")
        try:
            if kind == "jkt":
                return tokens_pb2.Binding(jkt=Bound(Method.DPOP, rest).thumbprint)
            if kind == "cert":
                der = ssl.PEM_cert_to_DER_cert(Path(rest).read_text("ascii").strip())
                return tokens_pb2.Binding(x5t_s256=hashlib.sha256(der).digest())
        except Invalid as bad:
            problem = f"{bad.message}; {bad.hint}"
        except (OSError, ValueError) as bad:
            problem = f"{rest!r} is no certificate in PEM ({bad})"
        else:
            problem = f"{value!r} is none of: own, cert:FILE, jkt:THUMBPRINT"
        raise click.BadParameter(problem, ctx, param)


bind_option = click.option(
    "--bind",
    "binding",
    type=Binding(),
    metavar="TO",
    help="Make it good for one holder only: `own` (the certificate that this command calls with), `cert:FILE` (a "
    "client certificate in PEM), or `jkt:THUMBPRINT` (a DPoP key).",
)
