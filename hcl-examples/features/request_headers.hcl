# request_headers: headers set, added and removed on the way to the backend.

gateway "edge" {
  # On the gateway: every route inherits it, unless it has a request_headers block of its own.
  request_headers {
    remove = ["x-internal-user"]
  }

  listener "web" {
    port = 8080
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  # The nearest block wins as a whole, so what should still hold is said again.
  rule "api" {
    match { path_prefix = "/api" }

    request_headers {
      set = {
        "x-team" = "shop"
        # Envoy's operators are replaced; a literal % is written %%.
        "x-client" = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
      }
      add    = { "x-seen-by" = "edge" }
      remove = ["x-internal-user", "x-debug"]
    }

    backend "consul" "shop" {}
  }

  # On one backend of several: what stands here holds for its requests instead of the wider block.
  rule "pages" {
    backend "consul" "shop" { weight = 90 }

    backend "consul" "shop-next" {
      weight = 10

      request_headers {
        set    = { "x-canary" = "yes" }
        remove = ["x-internal-user"]
      }
    }
  }
}
