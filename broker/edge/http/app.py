"""Key sets, the log, metrics and liveness over HTTP; nothing here changes anything."""

import json
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.service.policies import Policies
from broker.service.ports import CertificateRecord
from broker.token.jws import parse_jws, strict_json
from broker.token.keys import CERTIFICATE_TYP

Certificates = Callable[[str], Sequence[CertificateRecord]]


def make_app(
    policies: Policies,
    certificates: Certificates,
    metrics: Callable[[], bytes],
    is_live: Callable[[], bool],
    log_pages: Sequence[Route] = (),
) -> Starlette:
    """Return the ASGI application."""

    async def jwks(request: Request) -> Response:
        realm = request.path_params["realm"]
        if realm not in policies.current().policy.realms:
            return JSONResponse({"error": "not_found", "error_description": "there is no such realm"}, 404)
        keys = [_jwk(record) for record in certificates(realm)]
        return Response(
            json.dumps({"keys": keys}),
            media_type="application/jwk-set+json",
            headers={"Cache-Control": "max-age=60"},
        )

    async def metrics_page(_request: Request) -> Response:
        return Response(metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(_request: Request) -> Response:
        live = is_live()
        return JSONResponse({"live": live}, 200 if live else 503)

    return Starlette(
        routes=[
            Route("/realms/{realm}/jwks.json", jwks),
            Route("/metrics", metrics_page),
            Route("/healthz", health),
            *log_pages,
        ]
    )


def _jwk(record: CertificateRecord) -> dict[str, object]:
    """Return a key as RFC 7517 spells it; `broker_certificate` is the root's word for it and for its purpose."""
    claims = strict_json(parse_jws(record.certificate, typ=CERTIFICATE_TYP).payload)
    return {
        **claims["jwk"],
        "kid": record.kid,
        "use": "sig",
        "alg": "ES256",
        "broker_purpose": record.purpose.value,
        "broker_certificate": record.certificate,
    }
