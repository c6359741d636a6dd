# The smallest useful gateway: one port, one host, three rules. Nothing but Envoy is needed to try it:
#
#   portreeve agent -dev -config hcl-examples/quickstart.hcl
#   curl -i localhost:8080/                # goes to the program on port 9001 (503 while nothing listens there)
#   curl -i localhost:8080/healthz         # answered by the gateway itself
#   curl -i localhost:8080/docs            # sent elsewhere

# A gateway is a group of ports that one Envoy, or several, serve.
gateway "edge" {
  listener "web" {
    port = 8080
  }
}

# A route says what requests for some hosts get, rule by rule. The order of the rules does not matter: the most
# specific match wins.
http_route "quickstart" {
  gateways  = ["edge"]
  hostnames = ["localhost", "127.0.0.1"]

  rule "health" {
    match { path = "/healthz" }

    direct_response {
      status = 200
      body   = "ok"
    }
  }

  rule "docs" {
    match { path_prefix = "/docs" }

    redirect {
      scheme   = "https"
      hostname = "www.example.com"
      status   = 301
    }
  }

  # No match block: every other request.
  rule "app" {
    backend "upstream" "app" {}
  }
}

# An upstream is a destination with a name. Here: fixed addresses; the less busy one is taken.
upstream "app" {
  static { addresses = ["127.0.0.1:9001", "127.0.0.1:9002"] }
  connect_timeout = "1s"
}
