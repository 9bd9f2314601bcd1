"""`broker login`: a human logs in at a provider, and the other commands are that human until they log out."""

import json
import os
import re
import ssl
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from broker.edge.cli.context import Context, Identity, Login, write_context
from broker.edge.cli.kept_login import read_login, write_login
from broker.errors import ConfigInvalid, Forbidden
from broker.sdk import Client, Spec, TokenIdentity
from broker.token.foreign import parse_foreign
from broker.token.keys import public_jwk, thumbprint
from tests.identified import identified
from tests.issuer import AUDIENCE
from tests.served import BROKER
from tests.waiting import eventually


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with identified(tmp_path_factory.mktemp("identified")) as broker:
        yield broker


@pytest.fixture
def home(broker, tmp_path):
    """A configuration folder whose context leads to the broker and to its provider of humans."""
    papers = broker.papers["auditor"]
    write_context(
        Context(
            endpoint=broker.endpoint,
            ca=broker.authority.ca,
            trust=tmp_path / "trust.json",
            identities={"auditor": Identity(papers.certificate, papers.key, "spiffe://lab.example/audit")},
            admin="auditor",
            login=Login(f"127.0.0.1:{broker.login_port}", broker.sso.url, AUDIENCE, broker.sso.papers.ca),
        ),
        tmp_path / "broker" / "context.json",
    )
    yield tmp_path
    broker.sso.answers.clear()
    broker.sso.discovery.clear()


class Human:
    """Runs commands as the owner of `home`, and does what a human does in a browser."""

    def __init__(self, broker, home):
        self.broker = broker
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        self.file = home / "broker" / "login.json"

    def run(self, *arguments):
        return subprocess.run(
            [BROKER, *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def log_in(self, *arguments, browse=None):
        """Begin a login, let `browse` see what it says, and return how it ended."""
        process = subprocess.Popen(
            [BROKER, "login", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # What never comes must not hang the test.
        end = threading.Timer(60, process.kill)
        end.start()
        try:
            said = process.stderr.readline()
            if browse is not None:
                browse(said)
            out, more = process.communicate()
        finally:
            end.cancel()
        return process.returncode, out, said + more

    def browser(self, said):
        found = re.fullmatch(r"log in at: (https://\S+)\n", said)
        assert found, said
        return self.get(found[1])

    def get(self, url):
        context = ssl.create_default_context(cafile=str(self.broker.sso.papers.ca))
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:
            return answer.read().decode()


@pytest.fixture
def human(broker, home):
    return Human(broker, home)


def test_a_human_logs_in_by_browser_acts_through_the_login_door_and_logs_out(broker, human):
    broker.sso.offer_logins("u-carol")
    pages = []
    code, out, _ = human.log_in("--no-browser", "-o", "json", browse=lambda said: pages.append(human.browser(said)))
    assert code == 0
    assert "You are logged in" in pages[0]
    told = json.loads(out)
    assert (told["issuer"], told["subject"], told["bound"]) == (broker.sso.url, "u-carol", True)
    assert stat.S_IMODE(human.file.stat().st_mode) == 0o600
    kept = read_login(human.file)
    # Approvals are signed by the key that the provider bound the token to.
    assert parse_foreign(kept.token).claims["nonce"] == thumbprint(public_jwk(kept.key.public_key()))
    assert kept.token not in repr(kept)
    assert "PRIVATE" not in repr(kept)
    # Carol is an admin; the context's certificate is only an auditor's.
    only_admins = ("revoke", "--partner", "globex", "--reason", "a test", "--dry-run")
    assert human.run(*only_admins).returncode == 0
    # Where certificates are shown is in many an environment; a login knows its own door.
    human.environment["BROKER_ENDPOINT"] = broker.endpoint
    assert human.run(*only_admins).returncode == 0
    assert human.run(*only_admins, "--endpoint", f"127.0.0.1:{broker.login_port}").returncode == 0
    assert human.run(*only_admins, "--as", "auditor").returncode == 3
    assert human.run("logout").stdout == "logged out\n"
    assert not human.file.exists()
    assert human.run(*only_admins).returncode == 3
    assert json.loads(human.run("logout", "-o", "json").stdout) == {"logged_out": False}


def test_who_has_to_have_logged_in_a_moment_ago_asks_the_provider_to_ask(broker, human):
    broker.sso.offer_logins("u-carol")
    assert human.log_in("--no-browser", browse=human.browser)[0] == 0
    assert human.log_in("--no-browser", "--fresh", browse=human.browser)[0] == 0
    first, fresh = broker.sso.logins.values()
    assert (first.get("prompt"), first["max_age"]) == (None, "86400")
    assert (fresh["prompt"], fresh["max_age"]) == ("login", "60")
    assert human.run("login", "--device", "--fresh").returncode == 2


def test_a_human_logs_in_by_device(broker, human):
    broker.sso.offer_logins("u-carol")

    def browse(said):
        assert f"open {broker.sso.url}/activate and type: WDJB-MJHT" in said
        eventually(lambda: broker.sso.asked.count("/sso/token") >= 2, "it polls")
        broker.sso.approved.set()

    code, out, said = human.log_in("--device", browse=browse)
    assert code == 0, said
    assert out.startswith(f"logged in as u-carol of {broker.sso.url}")
    # RFC 8628 has no nonce.
    assert "sign approvals" in said
    assert not read_login(human.file).is_bound
    assert human.run("status").returncode == 0


def test_who_comes_back_with_another_state_or_issuer_is_not_the_login(broker, human):
    broker.sso.offer_logins("u-carol")

    def browse(said):
        url = said.removeprefix("log in at: ").strip()
        asked = dict(part.split("=", 1) for part in url.partition("?")[2].split("&"))
        back = urllib.request.unquote(asked["redirect_uri"])
        state = asked["state"]
        for query in (
            "code=stolen&state=guessed",
            "code=stolen",
            "error=access_denied",
            "error=access_denied&state=",
            f"code=stolen&state={state}&state={state}",
            f"code=stolen&state={state[:-1]}",
            f"code=stolen&state={state}&iss=https://evil.example",
        ):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{back}?{query}", timeout=10)
        with pytest.raises(urllib.error.HTTPError):
            # A name that was pointed at this machine (DNS rebinding).
            request = urllib.request.Request(f"{back}?code=stolen&state={state}", headers={"Host": "evil.example"})
            urllib.request.urlopen(request, timeout=10)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{back}/x?code=stolen&state={state}", timeout=10)
        human.browser(said)

    code, _, said = human.log_in("--no-browser", browse=browse)
    assert code == 0, said
    assert read_login(human.file).subject == "u-carol"


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"nonce": "of-another-login"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "another-program"}, "not for this broker alone"),
        ({"aud": [AUDIENCE, "another"]}, "not for this broker alone"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"exp": 1}, "ended"),
    ],
)
def test_a_token_of_another_login_program_or_issuer_is_not_kept(broker, human, claims, problem):
    broker.sso.offer_logins("u-carol", **claims)
    code, out, said = human.log_in("--no-browser", browse=human.browser)
    assert code == 1
    assert out == ""
    assert problem in said
    assert "eyJ" not in said
    assert not human.file.exists()


def test_a_refused_login_says_why_and_nobody_waits_for_ever(broker, human):
    broker.sso.offer_logins("u-carol")
    broker.sso.answers["/sso/token"] = lambda request: broker.sso.reply(
        request, {"error": "access_denied", "error_description": "not\x1b[2J today"}, status=400
    )
    code, _, said = human.log_in("--no-browser", browse=human.browser)
    assert code == 1
    assert "refused the login: not" in said
    assert "\x1b" not in said
    code, _, said = human.log_in("--no-browser", "--timeout", "1s")
    assert code == 1
    assert "in time" in said
    broker.sso.discovery["issuer"] = "https://evil.example"
    code, _, said = human.log_in("--no-browser")
    assert code == 1
    assert "another issuer" in said


def test_what_is_needed_to_log_in_is_named(human):
    context = human.file.with_name("context.json")
    document = json.loads(context.read_text())
    document["login"] = {}
    context.write_text(json.dumps(document))
    done = human.run("login")
    assert done.returncode == 2
    assert "--login-endpoint is needed" in done.stderr


def test_a_login_that_has_ended_or_that_others_can_read_is_not_used(broker, human):
    broker.sso.offer_logins("u-carol")
    assert human.log_in("--no-browser", browse=human.browser)[0] == 0
    kept = read_login(human.file)
    human.file.chmod(0o640)
    done = human.run("status")
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    over = datetime.now(UTC) - timedelta(seconds=1)
    write_login(
        type(kept)(kept.endpoint, kept.issuer, kept.subject, over, True, kept.token, kept.key_pem, kept.ca), human.file
    )
    done = human.run("status")
    assert done.returncode == 1
    assert "broker login" in done.stderr
    assert kept.token not in done.stderr
    human.file.write_text("{}")
    done = human.run("status")
    assert done.returncode == 1
    assert "broker logout" in done.stderr


def test_a_ci_job_acts_by_the_token_in_its_file(broker, human):
    file = human.file.with_name("ci-token")
    file.write_text(broker.github.github_token())
    asking = ("--realm", "evaluation", "--partner", "acme", "--model", "mythos", "--token-file", str(file))
    minted = human.run("token", "mint", *asking)
    assert minted.returncode == 0, minted.stderr
    assert minted.stdout.startswith("eyJ")
    file.write_text(broker.github.github_token(repository_id="457"))
    assert "no principal" in human.run("token", "mint", *asking).stderr
    done = human.run("token", "mint", *asking, "--as", "auditor")
    assert (done.returncode, "both say who to be" in done.stderr) == (2, True)
    done = human.run("status", "--token-file", str(file.with_name("none")))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr


def test_a_human_lets_a_ci_job_act_for_them_by_a_file_with_their_token(broker, human):
    done = human.run("login", "token")
    assert (done.returncode, "nobody is logged in" in done.stderr) == (1, True)
    broker.sso.offer_logins("u-alice")
    assert human.log_in("--no-browser", browse=human.browser)[0] == 0
    job, user = human.file.with_name("ci-token"), human.file.with_name("user-token")
    job.write_text(broker.github.github_token())
    user.write_text(human.run("login", "token").stdout)
    told = json.loads(human.run("login", "token", "-o", "json").stdout)
    assert told["token"] == user.read_text().strip()
    assert told["subject"] == "u-alice"
    asking = ("--realm", "shared", "--partner", "acme", "--model", "mythos", "--token-file", str(job))
    proving = ("--user-token-file", str(user))
    assert human.run("token", "mint", *asking, *proving).returncode == 0
    assert human.run("token", "mint", *asking, "--count", "2", *proving).returncode == 0
    opened = human.run("run", "open", *asking, *proving, "-o", "json")
    assert opened.returncode == 0, opened.stderr
    assert json.loads(opened.stdout)["user"] == "alice"
    done = human.run("token", "mint", *asking, "--user", "alice", "--workload", "nightly")
    assert (done.returncode, "nobody's word" in done.stderr) == (3, True)
    for text in ("", "x", "a.b.c d.e.f", "\u00e9.b.c", "a.b"):
        user.write_text(text)
        done = human.run("token", "mint", *asking, *proving)
        assert (done.returncode, "one identity token" in done.stderr) == (1, True)
    assert human.run("token", "mint", *asking, "--user-token-file", str(user.with_name("none"))).returncode == 1


# The SDK.


def test_a_client_shows_its_token_as_it_is_at_each_call(broker, tmp_path):
    file = tmp_path / "token"
    file.write_text(broker.github.github_token() + "\n")
    identity = TokenIdentity(file=file, ca=broker.authority.ca)
    spec = {"realm": "evaluation", "partner": "acme", "models": ["mythos"]}
    with Client.connect(f"127.0.0.1:{broker.login_port}", identity=identity, timeout_s=10) as client:
        assert client.mint(**spec).text
        # Platforms rotate such files.
        file.write_text(broker.github.github_token(repository_id="457"))
        with pytest.raises(Exception, match="no principal"):
            client.mint(**spec)
        file.write_text(broker.github.github_token(exp=int(time.time()) + 300))
        with client.run(**spec) as run:
            assert run.token(test="case-1")


def test_a_client_takes_a_text_or_what_makes_one_and_never_shows_it(broker):
    token = broker.github.github_token()
    spec = {"realm": "evaluation", "partner": "acme", "models": ["mythos"]}
    for source in (token, lambda: token):
        identity = TokenIdentity(source, ca=broker.authority.ca)
        assert token not in repr(identity)
        with Client.connect(f"127.0.0.1:{broker.login_port}", identity=identity, timeout_s=10) as client:
            assert client.mint(**spec).text


def test_a_client_shows_its_users_token_where_two_subjects_are_asked_for(broker):
    identity = TokenIdentity(broker.github.github_token, ca=broker.authority.ca)
    spec = {"realm": "shared", "partner": "acme", "models": ["mythos"]}
    alice = broker.sso.token(sub="u-alice")
    with Client.connect(f"127.0.0.1:{broker.login_port}", identity=identity, timeout_s=10) as client:
        assert client.mint(**spec, user_token=alice).text
        assert len(client.mint_batch([Spec(**spec), Spec(**spec)], user_token=alice)) == 2
        with pytest.raises(Forbidden, match="nobody's word"):
            client.mint(**spec, user="alice", workload="nightly")


def test_an_identity_of_nothing_or_that_cannot_be_read_is_refused_at_once(broker, tmp_path):
    for wrong in ({}, {"token": "x", "file": "y"}):
        with pytest.raises(ConfigInvalid):
            TokenIdentity(**wrong)
    for unreadable in ({"file": tmp_path / "none"}, {"token": "x", "ca": tmp_path / "none"}):
        with pytest.raises(ConfigInvalid):
            Client.connect("127.0.0.1:1", identity=TokenIdentity(**unreadable))
