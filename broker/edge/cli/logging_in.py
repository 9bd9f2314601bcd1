"""`broker login` and `broker logout`: act as the human at the keyboard, without a certificate."""

import webbrowser
from datetime import UTC, datetime
from pathlib import Path

import click

from broker.edge.cli.command import FILE, Command, CommandGroup, Session, calls_broker
from broker.edge.cli.context import Login
from broker.edge.cli.durations import Span
from broker.edge.cli.kept_login import KeptLogin, new_key, remove_login, write_login
from broker.edge.cli.oidc import LoggedIn, Provider
from broker.edge.cli.output import plain
from broker.edge.cli.problems import Misused, Unusable
from broker.token.keys import public_jwk, thumbprint

DEFAULT_WAIT = "5m"


@click.command(
    cls=CommandGroup,
    examples=[
        "broker login --issuer https://sso.example --client-id broker --login-endpoint broker:7442",
        "broker login --device",
        "broker login --no-browser --timeout 10m",
        "broker login token > user-token",
    ],
    keys="issuer, subject, ends_at, bound, endpoint.",
)
@click.option("--issuer", envvar="BROKER_ISSUER", metavar="URL", help="Identity provider. Default: the context's.")
@click.option("--client-id", envvar="BROKER_CLIENT_ID", metavar="ID", help="This program's name at the provider.")
@click.option("--issuer-ca", type=FILE, help="CA that the provider's certificate is from. Default: the system's CAs.")
@click.option("--login-endpoint", envvar="BROKER_LOGIN_ENDPOINT", metavar="HOST:PORT", help="The broker's login door.")
@click.option("--device", is_flag=True, help="Show a code to type in on another machine, where there is no browser.")
@click.option("--no-browser", is_flag=True, help="Only print the address to open.")
@click.option("--fresh", is_flag=True, help="Prove yourself again, also if the provider knows you: for approvals.")
@click.option("--timeout", type=Span(), default=DEFAULT_WAIT, show_default=True, help="Longest time to log in.")
@calls_broker()
def login(
    session: Session,
    *,
    issuer: str | None,
    client_id: str | None,
    issuer_ca: Path | None,
    login_endpoint: str | None,
    device: bool,
    no_browser: bool,
    fresh: bool,
    timeout: int,
) -> None:
    """Log in at an identity provider; the other commands then act as you, through the broker's login door.

    The login is kept beside the context file, mode 0600, with a key that is made for it: the provider binds
    its token to that key. Until it ends, or `broker logout`, certificates are used only with --as or --cert.
    """
    settings = session.settings
    if device and fresh:
        raise Misused("--fresh cannot be asked for with --device", hint="log in with a browser here")
    where = settings.where_to_log_in(Login(login_endpoint, issuer, client_id, issuer_ca))
    key, key_pem = new_key()
    provider = Provider(where.issuer, where.client_id, where.issuer_ca, thumbprint(public_jwk(key.public_key())))
    if device:
        done = provider.log_in_by_device(_say, timeout, _now)
    else:
        show = _ignored if no_browser else webbrowser.open
        done = provider.log_in_by_browser(show, _say, timeout, _now, is_fresh=fresh)
    kept = _kept(done, where.endpoint, where.issuer, key_pem, settings.ca_or_none())
    write_login(kept, settings.login_file())
    if not done.is_bound:
        session.output.note("the provider did not bind it to a key: it can do all but sign approvals")
    session.output.show(
        {
            "issuer": kept.issuer,
            "subject": kept.subject,
            "ends_at": kept.ends_at.isoformat(),
            "bound": kept.is_bound,
            "endpoint": kept.endpoint,
        },
        plain(f"logged in as {kept.subject} of {kept.issuer}, until {kept.ends_at:%Y-%m-%d %H:%M:%S} UTC"),
    )


@login.command(
    "token", cls=Command, examples=["broker login token > user-token"], keys="token, issuer, subject, ends_at."
)
@calls_broker()
def login_token(session: Session) -> None:
    """Print the token of the login, alone: for a program that acts for you (--user-token-file).

    The output is a secret: who has it can also act as you at the login door, until it ends.
    """
    kept = session.settings.login()
    if kept is None:
        raise Unusable("nobody is logged in", reason="CONTEXT", hint="broker login")
    text = kept.identity(_now()).text()
    told = {"token": text, "issuer": kept.issuer, "subject": kept.subject, "ends_at": kept.ends_at.isoformat()}
    session.output.show(told, text)


@click.command(cls=Command, examples=["broker logout"], keys="logged_out (false: nobody was logged in).")
@calls_broker()
def logout(session: Session) -> None:
    """Forget the login, and its key; commands act with the certificates of the context again.

    The token itself lives on at its provider until it ends; it was nowhere but in the file.
    """
    was_there = remove_login(session.settings.login_file())
    session.output.show({"logged_out": was_there}, "logged out" if was_there else "nobody was logged in")


def _kept(done: LoggedIn, endpoint: str, issuer: str, key_pem: str, ca: Path | None) -> KeptLogin:
    ends_at = datetime.fromtimestamp(done.ends_at_s, UTC)
    return KeptLogin(endpoint, issuer, done.subject, ends_at, done.is_bound, done.token, key_pem, ca)


def _say(text: str) -> None:
    # Beside the result, in every form: without it nobody could log in.
    click.echo(plain(text), err=True)


def _ignored(_url: str) -> None:
    """Open nothing."""


def _now() -> datetime:
    return datetime.now(UTC)
