# What the agent needs to get certificates from one role of a PKI mount.
# Replace "pki_int" by your mount and "edge" by your role; one path for each role in use.

# A certificate for a key that the agent made. Not `issue`: there Vault makes the key, and sees it.
path "pki_int/sign/edge" {
  capabilities = ["update"]
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
