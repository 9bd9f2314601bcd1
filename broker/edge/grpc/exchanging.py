"""What an exchange asks for, and what shows that its subject is the caller's own."""

from grpc.aio import ServicerContext

from broker.domain.asking import MAX_MODELS_BYTES
from broker.domain.delegation import Wish
from broker.edge.grpc.translate import bound, seconds
from broker.errors import Invalid, NotHolder
from broker.service.calling import Caller, CertificateProof
from broker.token.binding import Method, Shown, ShownCertificate, ShownProof
from broker.token.claims import MAX_MODELS, Claims
from broker.token.identifiers import identifier, model_name
from broker.v1 import tokens_pb2

METHOD = "/broker.v1.TokenService/Exchange"
DPOP = "dpop"


def wish_of(request: tokens_pb2.ExchangeRequest, caller: Caller) -> Wish:
    """Return what is wanted. Raises Invalid."""
    models = tuple(request.models)
    if len(models) > MAX_MODELS or len(set(models)) != len(models):
        raise Invalid("models", f"{len(models)} given", hint=f"name up to {MAX_MODELS} different models")
    if sum(len(model_name("models", model)) for model in models) > MAX_MODELS_BYTES:
        raise Invalid("models", f"has more than {MAX_MODELS_BYTES} characters in all", hint="ask for fewer models")
    ttl_s = seconds("lifetime", request.lifetime) if request.HasField("lifetime") else None
    if ttl_s is not None and ttl_s < 1:
        raise Invalid("lifetime", f"{ttl_s} s", hint="ask for at least 1 s, or leave it out")
    return Wish(
        models,
        ttl_s,
        bound(request.binding, caller) if request.HasField("binding") else None,
        identifier("test", request.test) if request.test else None,
        identifier("workload", request.workload) if request.workload else None,
    )


def shown_for(context: ServicerContext, caller: Caller, parent: Claims) -> Shown | None:
    """Return by what the caller shows that it holds a bound token; None: it is not bound, or nothing is shown.

    Raises:
        NotHolder: More than one DPoP proof was sent.
    """
    if parent.cnf is None:
        return None
    if Method.DPOP in parent.cnf:
        proofs = [value for name, value in context.invocation_metadata() or () if name == DPOP]
        if len(proofs) > 1:
            raise NotHolder(f"{len(proofs)} DPoP proofs were sent", hint="send exactly one metadata entry dpop")
        return ShownProof(str(proofs[0]), "POST", parent.iss + METHOD) if proofs else None
    sha256 = caller.proof.sha256 if isinstance(caller.proof, CertificateProof) else b""
    return ShownCertificate(sha256) if sha256 else None
