# client_ip: which client addresses may use a route. The others get 403.

gateway "edge" {
  listener "web" {
    port = 8080
    # One load balancer of ours stands in front and appends to X-Forwarded-For: the client's address is the one it saw.
    trusted_proxies = 1
  }
}

http_route "admin" {
  gateways  = ["edge"]
  hostnames = ["admin.example.com"]

  client_ip {
    allow = ["10.0.0.0/8", "2001:db8::/32"]
    deny  = ["10.6.6.0/24"]
  }

  rule "pages" {
    backend "consul" "admin" {}
  }

  # Open to everybody but one: `deny` without `allow`.
  rule "status" {
    match { path = "/status" }

    client_ip { deny = ["203.0.113.9"] }

    backend "consul" "admin" {}
  }

  # An inherited policy is switched off by name.
  rule "health" {
    match { path = "/healthz" }

    client_ip { disabled = true }

    direct_response { status = 204 }
  }
}
