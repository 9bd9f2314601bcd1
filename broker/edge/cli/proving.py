"""`broker audit checkpoint` and `prove`: what the log vouches for, in files that anyone can check."""

import base64
from pathlib import Path

import click

from broker.edge.cli.command import Command, Session, calls_broker, export_options
from broker.edge.cli.context import Context
from broker.edge.cli.exporting import must_be_free, write_new
from broker.edge.cli.output import plain
from broker.v1 import ledger_pb2

_AGAIN = "nothing is lost: ask the broker again"


@click.command(
    "checkpoint",
    cls=Command,
    examples=["broker audit checkpoint", "broker audit checkpoint --fresh -o json | jq .size"],
    keys="checkpoint (the signed note), size, signed_by: [name].",
)
@click.option("--fresh", is_flag=True, help="A new one over all entries, which witnesses may not have signed yet.")
@export_options
@calls_broker()
def checkpoint(session: Session, *, fresh: bool, export: Path | None, force: bool) -> None:
    """Print the log's newest checkpoint: how many entries it has, and the root of their tree.

    A signed note in the form of c2sp.org/tlog-checkpoint, with the signatures of the log and of its witnesses.
    Keep it: whoever has it finds any later change of what came before.
    """
    if export is not None:
        must_be_free(export, force=force)
    request = ledger_pb2.GetCheckpointRequest(fresh=fresh)
    with session.settings.connect(Context.for_admin) as broker:
        answer: ledger_pb2.GetCheckpointResponse = broker.call(broker.ledger.GetCheckpoint, request)
    note = answer.checkpoint.decode("utf-8", "replace")
    if export is not None:
        write_new(answer.checkpoint, export, force=force, hint=_AGAIN)
    result = {"checkpoint": note, "size": answer.size, "signed_by": list(answer.signed_by)}
    session.output.show(result, "\n".join(plain(line) for line in note.removesuffix("\n").split("\n")))


@click.command(
    "prove",
    cls=Command,
    examples=[
        "broker audit prove 17 --export entry-17.tlog-proof",
        "broker audit prove 17 -o json | jq -r .entry | base64 -d",
    ],
    keys="index, size (entries that the proof's checkpoint covers), entry (its exact bytes, base64), proof (the file).",
)
@click.argument("index", type=click.IntRange(0, 2**63 - 2))
@export_options
@calls_broker()
def prove(session: Session, *, index: int, export: Path | None, force: bool) -> None:
    """Prove that the ledger's entry at INDEX is in the log.

    The proof (c2sp.org/tlog-proof) is checked without a broker, with the log's key from the trust file, by
    `broker audit verify-proof` or whatever knows the form. It holds the entry as its extra data.
    """
    if export is not None:
        must_be_free(export, force=force)
    request = ledger_pb2.ProveInclusionRequest(index=index)
    with session.settings.connect(Context.for_admin) as broker:
        answer: ledger_pb2.ProveInclusionResponse = broker.call(broker.ledger.ProveInclusion, request)
    proof = answer.proof.decode("utf-8", "replace")
    if export is not None:
        write_new(answer.proof, export, force=force, hint=_AGAIN)
    result = {
        "index": index,
        "size": answer.size,
        "entry": base64.b64encode(answer.entry).decode("ascii"),
        "proof": proof,
    }
    told = f"wrote the proof to {export}" if export is not None else proof.removesuffix("\n")
    session.output.show(result, "\n".join(plain(line) for line in told.split("\n")))
