# What the agent needs to get certificates from one role of a PKI mount, signed by an issuer that the document names.
# Replace "pki_int" by your mount, "g2" by the issuer as the document names it, and "edge" by your role; one path for each pair.

# A certificate for a key that the agent made. A right at `sign` alone does not reach it, nor does this one reach `sign`.
path "pki_int/issuer/g2/sign/edge" {
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
