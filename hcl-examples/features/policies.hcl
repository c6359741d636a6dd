# Bundles: policies with a name, taken over where they are named. Written once, used by many routes, and kept by
# whoever is in charge of them.

policy "standard" {
  timeout = "15s"

  response_headers {
    set = { "x-content-type-options" = "nosniff" }
  }
}

policy "office-only" {
  client_ip {
    allow = ["10.0.0.0/8"]
  }
}

gateway "edge" {
  # On the gateway: holds for every route.
  policies = ["standard"]

  listener "web" {
    port = 8080
  }
}

http_route "intranet" {
  gateways  = ["edge"]
  hostnames = ["intranet.example.com"]
  policies  = ["office-only"]

  rule "pages" {
    backend "consul" "intranet" {}
  }

  # A block that stands here itself wins over the bundles, policy by policy: the address is still checked.
  rule "upload" {
    match { path_prefix = "/upload" }
    timeout = "10m"

    backend "consul" "intranet" {}
  }
}
