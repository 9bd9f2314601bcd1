#!/usr/bin/env bash
# Plays a person in a browser: logs in at Vault as $PERSON and goes back to where Vault's page would lead.
set -euo pipefail
token=$(bao write -format=json "auth/userpass/login/$PERSON" password=try |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["auth"]["client_token"])')
TOKEN=$token exec python3 - "$1" <<'PYTHON'
import json, os, ssl, sys, urllib.parse, urllib.request

query = urllib.parse.urlsplit(sys.argv[1]).query
asked = urllib.request.Request(
    f"{os.environ['BAO_ADDR']}/v1/identity/oidc/provider/default/authorize?{query}",
    headers={"X-Vault-Token": os.environ["TOKEN"]},
)
trusted = ssl.create_default_context(cafile=os.environ["BAO_CACERT"])
with urllib.request.urlopen(asked, context=trusted, timeout=20) as answer:
    found = json.load(answer)
back = dict(urllib.parse.parse_qsl(query))["redirect_uri"]
urllib.request.urlopen(f"{back}?{urllib.parse.urlencode({'code': found['code'], 'state': found['state']})}", timeout=20)
PYTHON
