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

# Status. Each agent keeps one key below nodes/, the elected leader the summary. Without these rights agents serve all the
# same, and say once which rule is missing.
key_prefix "portreeve/status/" {
  policy = "write"
}

# The lock that decides who leads. Serving needs no leader.
key "portreeve/leader" {
  policy = "write"
}

# The texts that were last accepted by Envoy: an agent that starts while a document is bad serves them. Who may write here
# may bring a document in service, as under config/.
key_prefix "portreeve/accepted/" {
  policy = "write"
}

# Node keys and the lock stand and fall with a session. Narrow it to a node's own name, if each has its own token.
session_prefix "" {
  policy = "write"
}
