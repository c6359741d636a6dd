# What a gateway in Consul's mesh needs beside consul-acl-policy.hcl: the right to be the service that it is there. Give it
# to a token of its own (`mesh { token_file = ... }`), or add it to the agent's policy.
#
#   consul acl policy create -name portreeve-mesh -rules @docs/deploy/consul-mesh-policy.hcl
#
# Who holds it can get a certificate of "edge-gw" and reach whatever its intentions allow, and register services of that
# name. Nothing else: discovery chains, instances and intentions are read with the agent's own token, whose
# service_prefix "" rule includes them.

service "edge-gw" {
  policy = "write"
}
