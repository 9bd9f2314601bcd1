#!/usr/bin/env bash
# Makes the Vault at BAO_ADDR vouch for two people, alice and carol, and for the program of a CI; writes in the current
# folder what the broker and its command line must know of them: policy.yaml and context.json. For trying out.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)

# People log in at pages of Vault, programs at its API; both with the password `try` here.
bao auth enable userpass
bao policy write people - <<< 'path "identity/oidc/provider/default/authorize" { capabilities = ["read", "update"] }'
bao policy write programs - <<< 'path "identity/oidc/token/ci" { capabilities = ["read"] }'
for name in alice carol; do bao write "auth/userpass/users/$name" password=try token_policies=people; done
bao write auth/userpass/users/ci password=try token_policies=programs
bao write identity/oidc/client/broker redirect_uris=http://127.0.0.1/callback client_type=public assignments=allow_all \
  id_token_ttl=10m
bao write identity/oidc/key/programs algorithm=ES256 allowed_client_ids='*'
bao write identity/oidc/role/ci key=programs ttl=10m client_id=broker

subject() { # what Vault calls somebody in each token, and will never call anybody else
  bao write -format=json "auth/userpass/login/$1" password=try |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["auth"]["entity_id"])'
}
# Vault takes its own file with it when it ends.
cp "$BAO_CACERT" providers-ca.pem
client=$(bao read -field=client_id identity/oidc/client/broker)
sed -e "s/@ALICE@/$(subject alice)/" -e "s/@CAROL@/$(subject carol)/" -e "s/@CI@/$(subject ci)/" \
  -e "s/@CLIENT@/$client/" -e "s#@VAULT@#$BAO_ADDR#" "$here/policy.yaml" > policy.yaml
sed -e "s/@CLIENT@/$client/" -e "s#@VAULT@#$BAO_ADDR#" "$here/context.json" > context.json
