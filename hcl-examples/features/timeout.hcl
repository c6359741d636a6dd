# timeout: how long a request may take, from its last byte in to its last byte out. Then the client gets 504.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "reports" {
  gateways  = ["edge"]
  hostnames = ["reports.example.com"]
  timeout   = "10s"

  # The nearest one wins: this rule alone may take five minutes.
  rule "export" {
    match { path_prefix = "/export" }
    timeout = "5m"

    backend "consul" "reports" {}
  }

  # "0s" is no bound at all, which is also what holds where nobody says anything: WebSockets, gRPC streams and
  # server-sent events live on.
  rule "live" {
    match { path = "/live" }
    timeout = "0s"

    backend "consul" "reports" {}
  }

  rule "pages" {
    backend "consul" "reports" {}
  }
}
