"""What a run knows of itself, and what it asks; shared by the run for threads and the one for asyncio."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from broker.errors import (
    ClockAstray,
    Failure,
    LimitReached,
    NotFound,
    Overloaded,
    RunEnded,
    SignerUnavailable,
    StoreFull,
    StoreUnavailable,
)
from broker.sdk import asking
from broker.sdk.asking import OwnCertificate, Spec
from broker.sdk.gathering import F, Gathering, Wallet, Want
from broker.sdk.run_key import KeptRun, RunKey, keep_run, must_be_free, read_kept_run
from broker.token.binding import Bound
from broker.token.identifiers import identifier, model_name
from broker.v1 import runs_pb2, tokens_pb2

MAX_DIGITS = 9
# No new token can be had for a while, for no fault of whoever asks: one that is due for renewal does meanwhile.
NOT_NOW = (StoreUnavailable, StoreFull, SignerUnavailable, ClockAstray, Overloaded)


class RunState(Generic[F]):
    """One run: not yet open, open, or over."""

    def __init__(
        self,
        spec: Spec,
        lease_s: int | None,
        key_file: str | Path | None,
        *,
        user_token: str = "",
        approval: str = "",
    ) -> None:
        self.spec = replace(spec, models=tuple(spec.models))
        self.key = RunKey.new()
        self.id = ""
        self.keep_every_s = 0.0
        self.ended: Failure | None = None
        self.is_left = False
        self.wallet = Wallet()
        self.gathering: Gathering[F] = Gathering()
        self._lease_s = lease_s
        self._user_token = user_token
        self._approval = approval
        self._key_file = None if key_file is None else Path(key_file)

    @classmethod
    def kept(
        cls,
        key_file: str | Path,
        *,
        lifetime_s: int | None = None,
        binding: Bound | OwnCertificate | None = None,
    ) -> "RunState[F]":
        """Return the state of the run that a key file is of. Raises ConfigInvalid."""
        kept = read_kept_run(key_file)
        spec = Spec(
            kept.realm, kept.partner, kept.models, kept.user, kept.workload, lifetime_s=lifetime_s, binding=binding
        )
        state: RunState[F] = cls(spec, None, key_file)
        state.key, state.id = kept.key, kept.run
        return state

    def beginning(self) -> tuple[str, Any]:
        """Return the call that begins: opening it, or going on with it. Raises ConfigInvalid for a file in the way."""
        if self.id:
            return "KeepRun", asking.keep_request(self.id)
        if self._key_file is not None:
            must_be_free(self._key_file)
        spec = self.spec
        request = asking.open_request(spec.realm, spec.partner, spec.models, self._lease_s)
        request.user, request.workload = spec.user or "", spec.workload or ""
        request.run_key = self.key.public_text()
        request.user_token = self._user_token
        request.approval = self._approval
        return "OpenRun", request

    def begun(self, run: runs_pb2.Run) -> None:
        """Take what the broker answered. Raises ConfigInvalid: the key file cannot be written; the run is open."""
        was_new, self.id = not self.id, run.id
        self.keep_every_s = asking.keep_every_s(run)
        if was_new and self._key_file is not None:
            spec = self.spec
            keep_run(
                KeptRun(run.id, self.key, spec.realm, spec.partner, tuple(spec.models), spec.user, spec.workload),
                self._key_file,
            )

    def closed(self) -> None:
        """Forget the key: nothing can be done with it any more."""
        if self._key_file is not None:
            self._key_file.unlink(missing_ok=True)

    def want(self, test: str | None, models: Sequence[str] | None) -> Want:
        """Return what is wanted; judged here, so that nobody's call fails for what another one wanted.

        Raises:
            Invalid: The test or a model cannot be called so.
            RunEnded: The run is over, or not open yet.
        """
        if self.ended is not None:
            raise self.ended
        if not self.id:
            raise RunEnded("the run is not open", hint="use it in a `with` block")
        if test is not None:
            identifier("test", test)
        if models is None:
            return Want(test, tuple(self.spec.models))
        # A text is a sequence too, of letters.
        given = (models,) if isinstance(models, str) else tuple(models)
        return Want(test, tuple(model_name("models", model) for model in given))

    def minting(self, wants: Sequence[Want]) -> tuple[str, Any]:
        """Return the call that asks for these tokens."""
        specs = [replace(self.spec, run=self.id, test=want.test, models=want.models) for want in wants]
        if len(specs) == 1:
            return "Mint", asking.mint_request(specs[0])
        return "MintBatch", asking.batch_request(specs)

    def minted(self, wants: Sequence[Want], answer: Any, asked_s: float) -> list[str]:
        """Hold the tokens of an answer and return them. Raises Malformed."""
        tokens = [answer.token] if isinstance(answer, tokens_pb2.MintResponse) else answer.tokens
        for want, token in zip(wants, tokens, strict=True):
            self.wallet.put(want, token.token, asked_s)
        return [token.token for token in tokens]

    def is_batch_limit(self, failure: Failure) -> bool:
        """Tell whether fewer at once might be had."""
        return isinstance(failure, LimitReached) and failure.metadata.get("limit") == "batch"

    def room(self, failure: Failure) -> int:
        """Return for how many more tokens a limit has room, as the broker told with a refusal."""
        text = failure.metadata.get("room", "") if isinstance(failure, LimitReached) else ""
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else 0

    def is_over(self, failure: Failure) -> bool:
        """Take note of a failure, and tell whether it means that the run is over."""
        if isinstance(failure, RunEnded | NotFound):
            self.ended = self.ended or failure
            return True
        return False
