# Wildcard hosts. The most specific host wins as a whole: its rules alone are looked at.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "blog" {
  gateways  = ["edge"]
  hostnames = ["blog.example.com"]

  rule "all" {
    backend "consul" "blog" {}
  }
}

# Every host below example.com, at any depth: a.example.com, a.b.example.com; not example.com itself.
http_route "tenants" {
  gateways  = ["edge"]
  hostnames = ["*.example.com"]

  rule "all" {
    backend "consul" "tenants" {}
  }
}

# Whatever nobody else names.
http_route "fallback" {
  gateways  = ["edge"]
  hostnames = ["*"]

  rule "all" {
    direct_response {
      status = 404
      body   = "no such site"
    }
  }
}
