#!/bin/sh
# Prepares Vault (OpenBao) for a broker: transit keys for each realm and for the log, the policy, an AppRole.
#
#   BAO_ADDR=https://vault:8200 BAO_TOKEN=... deploy/vault/prepare.sh [-o FOLDER] [-t] REALM...
#
# -o FOLDER  where role_id and secret_id are written, mode 0600 (default: the current folder)
# -t         also make a token key for each realm, for keys.mode = "transit"
#
# MOUNT (default transit), ROLE (default broker) and BAO (default bao) may be set in the environment.
# It may be run again: what exists stays, the policy is replaced, and a new secret_id is made.
set -eu

MOUNT=${MOUNT:-transit}
ROLE=${ROLE:-broker}
BAO=${BAO:-bao}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=.
with_token_keys=no

fail() {
  printf 'prepare.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

while getopts o:t option; do
  case $option in
    o) folder=$OPTARG ;;
    t) with_token_keys=yes ;;
    *) fail 'usage: prepare.sh [-o FOLDER] [-t] REALM...' 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || fail 'usage: prepare.sh [-o FOLDER] [-t] REALM...' 2
: "${BAO_ADDR:?set BAO_ADDR to the address of Vault}"
: "${BAO_TOKEN:?set BAO_TOKEN to the token of an administrator}"

keys=
for realm in "$@"; do
  case $realm in
    '' | *[!a-z0-9._-]* | [!a-z0-9]* | *[!a-z0-9] | *..*) fail "$realm is no name of a realm" 2 ;;
    # Its root key would be the token key of another realm.
    *-tokens) fail "$realm: the name of a realm must not end in -tokens" 2 ;;
  esac
  keys="$keys broker-$realm"
  [ "$with_token_keys" = no ] || keys="$keys broker-$realm-tokens"
done

# No realm can be called so.
log_key=broker-_checkpoints

umask 077
mkdir -p -- "$folder"
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
trap 'exit 1' HUP INT TERM

mounted() { # sys/mounts or sys/auth, path, type
  "$BAO" read -field="$2/" "$1" >"$work/mount" 2>/dev/null || return 1
  grep -q "type:$3[] ]" "$work/mount" || fail "$2/ is mounted, but is not of type $3"
}

mounted sys/mounts "$MOUNT" transit || "$BAO" secrets enable -path="$MOUNT" transit >/dev/null
mounted sys/auth approle approle || "$BAO" auth enable approle >/dev/null

once=$(grep -n '^# @ONCE@$' "$here/broker-policy.hcl" | cut -d: -f1)
at_log=$(grep -n '^# @LOG@$' "$here/broker-policy.hcl" | cut -d: -f1)
: >"$work/policy.hcl"
for key in $keys $log_key; do
  type=ecdsa-p256 first=1 last=$((at_log - 1))
  # The log's key signs checkpoints with Ed25519.
  [ "$key" != "$log_key" ] || { type=ed25519 first=$((at_log + 1)) last=$((once - 1)); }
  "$BAO" read "$MOUNT/keys/$key" >/dev/null 2>&1 ||
    "$BAO" write "$MOUNT/keys/$key" type=$type exportable=false allow_plaintext_backup=false derived=false >/dev/null
  for property in exportable allow_plaintext_backup; do
    [ "$("$BAO" read -field=$property "$MOUNT/keys/$key")" = false ] || fail "the key $key exists and is $property"
  done
  sed -n "${first},${last}p" "$here/broker-policy.hcl" | sed -e "s|@MOUNT@|$MOUNT|g" -e "s|@KEY@|$key|g" >>"$work/policy.hcl"
done
tail -n "+$((once + 1))" "$here/broker-policy.hcl" >>"$work/policy.hcl"

"$BAO" policy write "$ROLE" "$work/policy.hcl" >/dev/null
"$BAO" write "auth/approle/role/$ROLE" token_policies="$ROLE" token_no_default_policy=true \
  token_ttl=20m token_max_ttl=24h token_type=service >/dev/null

"$BAO" read -field=role_id "auth/approle/role/$ROLE/role-id" >"$work/role_id"
"$BAO" write -force -field=secret_id "auth/approle/role/$ROLE/secret-id" >"$work/secret_id"
for name in role_id secret_id; do
  # Made under umask 077, so 0600; moved, so that no reader sees half of it.
  cp -- "$work/$name" "$folder/.$name.new"
  mv -- "$folder/.$name.new" "$folder/$name"
done
printf 'prepared:%s %s; role_id and secret_id are in %s\n' "$keys" "$log_key" "$folder"
