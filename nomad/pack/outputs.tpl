The gateway [[ var "gateway" . ]] comes up on the nodes of the pool [[ var "node_pool" . ]]:

  nomad job status portreeve

It serves once its document is in Consul KV:

  consul kv put portreeve/config/[[ var "gateway" . ]] @[[ var "gateway" . ]].hcl
