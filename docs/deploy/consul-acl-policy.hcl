# What the agent needs in Consul, and nothing more. `make demo` runs with exactly this file and ACLs that deny by default.
#
#   consul acl policy create -name portreeve -rules @docs/deploy/consul-acl-policy.hcl
#
# Replace "portreeve" by your prefix, if you use another one.

# The documents. With `acl.enable_key_list_policy` on the servers: policy = "list", which reads too.
key_prefix "portreeve/config/" {
  policy = "read"
}

# The instances of the services that routes name. Narrow it to the services that the edge may show, if you like: an
# instance that may not be read is as if it were not there, and the agent says so.
service_prefix "" {
  policy = "read"
}

# Health answers hold the nodes: without this right Consul leaves every instance out.
node_prefix "" {
  policy = "read"
}
