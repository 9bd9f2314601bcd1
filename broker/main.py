"""Composition root: the only file that knows which adapter fills which port."""

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the command line."""
    try:
        # A wheel without extras is the SDK: even the command line may not be there.
        from broker.edge.cli import cli_with  # noqa: PLC0415

        program = cli_with(
            dev=_dev,
            serve=_serve,
            witness=_witness,
            backup=_backup,
            restore=_restore,
            archive=_archive,
            validate=_validate,
            strangers=_strangers,
        )
        sys.exit(program.main(standalone_mode=True))
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "broker"):
            raise
        sys.exit(
            f"broker: failed: {package} is not installed: this is the SDK alone; "
            "install the rest with: pip install 'credential-broker[server]'"
        )


# The server's parts take most of a second to load: only the commands that need them wait for that.


def _dev(*, data: Path, port: int, http_port: int, login_port: int, once: bool) -> int:
    from broker.running import run_dev  # noqa: PLC0415

    return run_dev(data=data, port=port, http_port=http_port, login_port=login_port, once=once)


def _serve(*, config: Path) -> int:
    from broker.running import run_serve  # noqa: PLC0415

    return run_serve(config=config)


def _witness(**options: Any) -> int:
    from broker.witness import run_witness  # noqa: PLC0415

    return run_witness(**options)


def _backup(**options: Any) -> int:
    from broker.backups import run_backup  # noqa: PLC0415

    return run_backup(**options)


def _restore(**options: Any) -> int:
    from broker.backups import run_restore  # noqa: PLC0415

    return run_restore(**options)


def _archive(**options: Any) -> int:
    from broker.archiving import run_archive  # noqa: PLC0415

    return run_archive(**options)


def _validate(document: str, source: str) -> list[str]:
    from broker.running import validate_policy  # noqa: PLC0415

    return validate_policy(document, source)


def _strangers() -> Any:
    from broker import stranger  # noqa: PLC0415

    return stranger
