# What the agent needs to serve certificates kept in a KV version 1 mount.
# Replace "kv" by your mount and "portreeve" by the folder that holds the certificates.

# The chain and the key.
path "kv/portreeve/*" {
  capabilities = ["read"]
}

# Its own token: how long it lives, to renew it, to give it back.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
