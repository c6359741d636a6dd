# Matching: which rule takes a request. Over all rules of a host the most specific wins, whatever the order written:
# exact path, then regular expression, then longest prefix; then more conditions.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "api" {
  gateways  = ["edge"]
  hostnames = ["api.example.com"]

  rule "exact" {
    match { path = "/v1/users/me" }

    backend "consul" "users" {}
  }

  # Whole segments: /v1/users and /v1/users/7, not /v1/users-old.
  rule "prefix" {
    match { path_prefix = "/v1/users" }

    backend "consul" "users" {}
  }

  # The expression covers the whole path.
  rule "regex" {
    match { path_regex = "/v[0-9]+/files/.*" }

    backend "consul" "files" {}
  }

  # Several match blocks: any of them. Within one block: all conditions.
  rule "writes" {
    match {
      path_prefix = "/v1"
      methods     = ["POST", "PUT", "PATCH", "DELETE"]
    }

    match {
      path_prefix = "/v1"

      query "dry-run" { present = true }
    }

    backend "consul" "writer" {}
  }

  rule "mobile" {
    match {
      path_prefix = "/v1"

      header "user-agent" { contains = "Mobile" }
      header "x-app-version" { regex = "[3-9]\\..*" }

      # Not one of our own testers.
      header "x-tester" {
        exact  = "yes"
        invert = true
      }

      # No debug header at all.
      header "x-debug" { present = false }

      query "lang" { prefix = "de" }
    }

    backend "consul" "mobile" {}
  }

  rule "rest" {
    backend "consul" "web" {}
  }
}
