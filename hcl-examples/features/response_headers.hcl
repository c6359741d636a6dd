# response_headers: headers set, added and removed on the way back to the client.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  response_headers {
    set = {
      "strict-transport-security" = "max-age=31536000"
      "x-content-type-options"    = "nosniff"
    }
    remove = ["x-powered-by"]
  }

  rule "downloads" {
    match { path_prefix = "/download" }

    response_headers {
      add = { "cache-control" = "private" }
    }

    backend "consul" "shop" {}
  }

  rule "pages" {
    backend "consul" "shop" {}
  }
}
