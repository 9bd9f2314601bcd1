"""What is asked for."""

from dataclasses import dataclass

from broker.errors import Invalid
from broker.token.binding import Bound
from broker.token.claims import MAX_MODELS
from broker.token.identifiers import identifier, model_name, opaque_id

UNRECOGNISED = "unrecognised"
"""Stands for the place of a caller whose certificate proves none. Nothing is ever granted there."""

# A token names its models twice; all of it must fit the size above which verifiers read nothing.
MAX_MODELS_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Ask:
    """One wanted token, well-formed but not yet judged. `ttl_s` None: the grant's default. `approval`: id of one.

    With a user and a workload it is the workload that acts for the user. `bound`: to what the token shall be.

    Raises:
        Invalid: A field is missing or malformed; names the field.
    """

    realm: str
    partner: str
    user: str | None
    workload: str | None
    models: tuple[str, ...]
    environment: str
    run: str | None = None
    test: str | None = None
    ttl_s: int | None = None
    approval: str | None = None
    bound: Bound | None = None

    def __post_init__(self) -> None:
        identifier("realm", self.realm)
        identifier("partner", self.partner)
        if self.user is None and self.workload is None:
            raise Invalid("principal", "is neither a user nor a workload", hint="name the user, the workload, or both")
        for name, value in (("user", self.user), ("workload", self.workload)):
            if value is not None:
                identifier(name, value)
        _check_models(self.models)
        identifier("environment", self.environment)
        for name, value in (("run", self.run), ("approval", self.approval)):
            if value is not None:
                opaque_id(name, value)
        if self.test is not None:
            identifier("test", self.test)
            if self.run is None:
                raise Invalid("test", "needs a run", hint="open a run and name it")
        if self.ttl_s is not None and self.ttl_s < 1:
            raise Invalid("lifetime", f"{self.ttl_s} s", hint="ask for at least 1 s, or leave it out")


def _check_models(models: tuple[str, ...]) -> None:
    if not 1 <= len(models) <= MAX_MODELS:
        raise Invalid("models", f"{len(models)} given", hint=f"name 1 to {MAX_MODELS} models")
    for model in models:
        model_name("models", model)
    if len(set(models)) != len(models):
        raise Invalid("models", "names a model twice", hint="name each model once")
    if sum(len(model) for model in models) > MAX_MODELS_BYTES:
        raise Invalid(
            "models",
            f"has more than {MAX_MODELS_BYTES} characters in all",
            hint="ask for fewer models in one token",
        )
