#!/usr/bin/env bash
# Prints the identity token of the CI's program, as a CI hands one to each of its jobs.
set -euo pipefail
token=$(bao write -format=json auth/userpass/login/ci password=try |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["auth"]["client_token"])')
BAO_TOKEN=$token bao read -field=token identity/oidc/token/ci
