"""Run a broker: `broker dev` on embedded defaults, `broker serve` from a configuration."""

import asyncio
import gc
import os
import resource
import secrets
import sys
import threading
from datetime import timedelta
from pathlib import Path

from broker import demo
from broker.adapters.checkpoint_keys import LocalCheckpointKey
from broker.adapters.clock import SystemClock
from broker.adapters.entry_archive import EntryArchive
from broker.adapters.identity_tokens import Outside
from broker.adapters.key_files import write_secret
from broker.adapters.key_rotation import Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.logs import set_up_logs
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.policy_file import load_policy
from broker.adapters.sql.engine import DataFolder
from broker.adapters.witness_client import WitnessClient
from broker.assembly import Broker
from broker.composing import Parts
from broker.config import LedgerSettings, Settings, load_settings
from broker.doors import Doors
from broker.edge.cli.context import Context, Identity, Login, context_path, write_context
from broker.errors import ConfigInvalid, Failure, Invalid, StoreUnavailable
from broker.https import Reach, must_be_authorities
from broker.key_home import KeyHome, open_key_home
from broker.ledger.note import KeyKind, parse_vkey
from broker.publishing import LogParts
from broker.sdk import Verifier
from broker.service.runs import DEFAULT_MAX_LIFE
from broker.service.tree_ports import Witness
from broker.token.keys import render_trust

EXIT_DONE, EXIT_FAILED = 0, 1
DEV_HEADROOM_BYTES = 4 << 20
CHECKPOINT_FILE = "checkpoint"
EVENTS_FILE = "events.db"
MIB = 1 << 20


def _take_all_handles() -> None:
    """Raise the number of open files to what the machine allows: each verifier is one, and many start with 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _spare_the_collector() -> None:
    """Keep what start-up made out of the garbage collector's walks, which stopped a batch for up to 60 ms."""
    gc.collect()
    gc.freeze()
    # A batch makes some ten thousand objects that end with it, and no cycles.
    gc.set_threshold(20_000, 20, 50)


def validate_policy(document: str, source: str) -> list[str]:
    """Return the problems of a policy file, none if it is good."""
    try:
        load_policy(document, source=source)
    except ConfigInvalid as invalid:
        return list(invalid.problems)
    return []


def run_dev(*, data: Path, port: int, http_port: int, login_port: int, once: bool) -> int:
    """Run the demo broker in `data` until interrupted, or with `once` through the tour; return the exit code."""
    set_up_logs("error")
    _take_all_handles()
    try:
        return asyncio.run(_dev(data, port, http_port, login_port, once=once))
    except Failure as failure:
        return failed(failure)
    except KeyboardInterrupt:
        return EXIT_DONE


def run_serve(*, config: Path) -> int:
    """Run a broker as `config` says until it is told to stop; return the exit code."""
    try:
        settings = load_settings(config)
        set_up_logs(settings.log.level)
        _take_all_handles()
        return asyncio.run(_serve(settings))
    except Failure as failure:
        return failed(failure)
    except KeyboardInterrupt:
        return EXIT_DONE


def failed(failure: Failure) -> int:
    """Say what went wrong; return the exit code."""
    if isinstance(failure, ConfigInvalid):
        for problem in failure.problems:
            # Problems of a policy begin with their file and line.
            where = "" if problem.startswith(f"{failure.what}:") else f"{failure.what}: "
            sys.stderr.write(f"broker: failed: {where}{problem}\n")
    else:
        sys.stderr.write(f"broker: failed: {failure}\n")
    return EXIT_FAILED


async def _dev(data: Path, port: int, http_port: int, login_port: int, *, once: bool) -> int:
    folder = DataFolder(data)
    try:
        papers = demo.issue_papers(data)
        broker = Broker(
            _dev_parts(data),
            Doors(
                f"127.0.0.1:{port}",
                f"127.0.0.1:{http_port}",
                papers.server.cert,
                papers.server.key,
                papers.ca,
                login=f"127.0.0.1:{login_port}",
            ),
        )
        broker.apply_first_policy(demo.POLICY, demo.ADMIN)
        outcome: list[Failure] = []
        loop = asyncio.get_running_loop()

        def after_ready() -> None:
            try:
                _show(broker, papers, data, once=once)
                _tour(broker, papers, keeps_listening=not once, stopping=stopping)
            except Failure as failure:
                outcome.append(failure)
            if once or outcome:
                loop.call_soon_threadsafe(broker.stop)

        stopping = threading.Event()
        guide = threading.Thread(target=after_ready, name="tour", daemon=True)
        try:
            await broker.serve(on_ready=guide.start)
        finally:
            stopping.set()
        if guide.ident is not None:
            await asyncio.to_thread(guide.join, 10)
        if outcome:
            raise outcome[0]
        return EXIT_DONE
    except OSError as problem:
        raise StoreUnavailable(
            f"the data folder {data} cannot be used: {problem.strerror}",
            hint="make it writable, or choose another with --data",
        ) from problem
    finally:
        folder.release()


def _dev_parts(data: Path) -> Parts:
    keys = data / "keys"
    return Parts(
        store_url=f"sqlite:///{data.absolute() / 'ledger.db'}",
        headroom_bytes=DEV_HEADROOM_BYTES,
        is_sole=True,
        root=LocalRoot(keys, _passphrase(keys / "passphrase")),
        make_token_key=make_memory_key,
        signs_in_memory=True,
        lifetimes=Lifetimes(),
        admins=frozenset({demo.ADMIN}),
        max_ttl=timedelta(days=1),
        max_run=DEFAULT_MAX_LIFE,
        clock=SystemClock(),
        meter=PrometheusMeter(),
        # A demo's entries are for everybody to look at.
        log=LogParts(
            LocalCheckpointKey(keys, _passphrase(keys / "passphrase")),
            name="broker.dev.example",
            publishes_entries=True,
            file=data / CHECKPOINT_FILE,
        ),
        events_file=data / EVENTS_FILE,
        # Whoever tries it has the identity provider on the same machine.
        outside=Outside(Reach(private=None)),
    )


def _passphrase(path: Path) -> bytes:
    """Return the passphrase of the demo's root keys, made on first use."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(path, secrets.token_hex(32).encode())
    return path.read_bytes().strip()


def _show(broker: Broker, papers: demo.Papers, data: Path, *, once: bool) -> None:
    trust = render_trust((broker.signer.roots(realm) for realm in demo.REALMS), broker.log.trust())
    demo.write_trust(papers.trust, trust)
    endpoint = f"127.0.0.1:{broker.port}"
    # The tour's broker is gone in a moment and must not change where the commands go.
    context_file = data / "context.json" if once else context_path(os.environ)
    write_context(
        Context(
            endpoint=endpoint,
            ca=papers.ca,
            trust=papers.trust,
            identities={
                name: Identity(issued.cert, issued.key, demo.PRINCIPALS[name])
                for name, issued in papers.clients.items()
            },
            admin="admin",
            harness={"acme": "acme", "globex": "globex"},
            verifier={realm: f"verifier-{realm}" for realm in demo.REALMS},
            login=Login(endpoint=f"127.0.0.1:{broker.login_port}"),
        ),
        context_file,
    )
    _say(f"broker is ready at {endpoint} (gRPC, mutual TLS), https://127.0.0.1:{broker.http_port} (HTTP)")
    _say(f"  login    127.0.0.1:{broker.login_port} (gRPC, for identity tokens; see: broker login --help)")
    _say(f"  data     {data}")
    _say(f"  context  {context_file}")
    _say(f"  trust    {papers.trust}")
    _say("")


def _tour(broker: Broker, papers: demo.Papers, *, keeps_listening: bool, stopping: threading.Event) -> None:
    endpoint = f"127.0.0.1:{broker.port}"
    verifier = Verifier.connect(
        endpoint,
        realm="evaluation",
        trust=papers.trust,
        identity=papers.identity("verifier-evaluation"),
        # Where its receipts wait until the ledger has them.
        state_dir=papers.trust.with_name("verifier"),
    )
    try:
        _say("the tour, with the time that each step took:")
        try:
            demo.Tour(endpoint, papers, verifier, _say).run()
        except demo.TourFailed as failed:
            if not keeps_listening:
                raise
            # Whoever tried things out yesterday finds them as they were left, and needs the broker to change them.
            _say(f"the tour ends here, because this broker is not as new: {failed.message}")
            if failed.hint:
                _say(f"to have it again: {failed.hint}, and start anew")
        if keeps_listening:
            _say(_TO_TRY)
            stopping.wait()
    finally:
        verifier.close()


_TO_TRY = """
the demo verifier goes on listening; try, in another terminal:
  broker token mint --realm evaluation --partner acme --user alice --model mythos > token
  broker token verify --realm evaluation --model mythos < token
  broker revoke --partner acme --reason "trying it out" --wait
  broker token verify --realm evaluation --model mythos < token
  broker reinstate --partner acme --reason "tried it"
  broker report access --model mythos
stop with Ctrl-C
"""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _serve(settings: Settings) -> int:
    server = settings.server
    folder = DataFolder(server.data_dir)
    clock, meter = SystemClock(), PrometheusMeter()
    home: KeyHome | None = None
    try:
        home = open_key_home(settings, clock, meter)
        broker = Broker(
            _serve_parts(settings, clock, meter, home),
            Doors(
                server.listen,
                server.http_listen,
                settings.tls.cert,
                settings.tls.key,
                settings.tls.client_ca,
                login=server.login_listen,
                feed=server.feed_listen,
            ),
        )

        def ready() -> None:
            _spare_the_collector()
            login = f" and {broker.login_port} (login)" if broker.login_port else ""
            feed = f" and {broker.feed_port} (feed)" if broker.feed_port else ""
            _say(
                f"broker is ready at port {broker.port} (gRPC) and {broker.http_port or 'no port'} (HTTP){login}{feed}"
            )

        await broker.serve(on_ready=ready)
        return EXIT_DONE
    finally:
        if home is not None:
            await asyncio.to_thread(home.close)
        folder.release()


def _serve_parts(settings: Settings, clock: SystemClock, meter: PrometheusMeter, home: KeyHome) -> Parts:
    url = store_url(settings)
    sole = settings.store.sole_broker
    must_be_authorities("identity.ca_file", settings.identity.ca_file)
    must_be_authorities("ledger.witness_ca_file", settings.ledger.witness_ca_file)
    return Parts(
        store_url=url,
        headroom_bytes=settings.store.headroom_mib * MIB,
        is_sole=url.startswith("sqlite") if sole is None else sole,
        root=home.root,
        make_token_key=home.make,
        signs_in_memory=home.signs_in_memory,
        lifetimes=Lifetimes(token=timedelta(minutes=settings.keys.signing_minutes)),
        admins=frozenset(settings.server.admins),
        max_ttl=timedelta(seconds=settings.limits.max_ttl_s),
        max_run=timedelta(seconds=settings.limits.max_run_s),
        clock=clock,
        meter=meter,
        log=LogParts(
            home.checkpoints,
            name=settings.ledger.name,
            publishes_entries=settings.ledger.publish_entries,
            file=settings.ledger.checkpoint_file or settings.server.data_dir / CHECKPOINT_FILE,
            command=settings.ledger.checkpoint_command,
            witnesses=_witnesses(settings.ledger),
        ),
        events_file=settings.server.data_dir / EVENTS_FILE,
        archive=EntryArchive(settings.ledger.archive) if settings.ledger.archive is not None else None,
        outside=Outside(
            Reach(frozenset(settings.identity.allow_private), settings.identity.ca_file),
            settings.identity.review_token_files,
        ),
        key_home_problem=home.problem,
    )


def _witnesses(ledger: LedgerSettings) -> tuple[Witness, ...]:
    reach = Reach(private=None, ca_file=ledger.witness_ca_file)
    found: list[Witness] = []
    for number, one in enumerate(ledger.witnesses):
        try:
            key = parse_vkey(one.key)
        except Invalid as bad:
            raise ConfigInvalid(f"ledger.witnesses.{number}.key", (bad.problem,)) from bad
        if key.kind is not KeyKind.COSIGNATURE:
            raise ConfigInvalid(f"ledger.witnesses.{number}.key", (f"{key.name} is a log's key, not a witness's",))
        found.append(WitnessClient(one.url, key, reach))
    return tuple(found)


def store_url(settings: Settings) -> str:
    """Return where the store is."""
    store = settings.store
    if store.url_file is not None:
        return store.url_file.read_text(encoding="utf-8").strip()
    return store.url or f"sqlite:///{settings.server.data_dir.absolute() / 'ledger.db'}"
