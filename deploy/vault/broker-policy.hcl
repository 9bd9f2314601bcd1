# What a broker may do in Vault, and nothing else. prepare.sh writes the two paths below once for each realm's key that
# it makes, with the names put in, so that a broker can use the keys of its realms and of no other.

# The public halves, which verifiers pin.
path "@MOUNT@/keys/@KEY@" {
  capabilities = ["read"]
}

# Signatures, of one kind: ES256.
path "@MOUNT@/sign/@KEY@/sha2-256" {
  capabilities = ["update"]
}

# @LOG@
# The log's key, in the same way: its public half, and signatures of checkpoints, which are Ed25519.
path "@MOUNT@/keys/@KEY@" {
  capabilities = ["read"]
}

path "@MOUNT@/sign/@KEY@" {
  capabilities = ["update"]
}

# @ONCE@
# Its own token: see whether it is good, renew it, give it back at the end.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
