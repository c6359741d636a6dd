The gateway [[ var "gateway" . ]] comes up on the nodes of the pool [[ var "node_pool" . ]]:

  nomad job status portreeve

Its document is the deploy command's business:

  consul kv put portreeve/config/[[ var "gateway" . ]] @[[ var "gateway" . ]].hcl
