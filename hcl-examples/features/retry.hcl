# retry: what is tried again when it fails, on another instance where there is one.

gateway "edge" {
  listener "web" {
    port = 8080
  }
}

http_route "catalog" {
  gateways  = ["edge"]
  hostnames = ["catalog.example.com"]

  # "5xx" may follow a request that took effect, so only GET, HEAD, OPTIONS, TRACE, PUT and DELETE are repeated.
  retry {
    attempts        = 3
    on              = ["connect-failure", "5xx"]
    per_try_timeout = "2s"
  }

  # By status.
  rule "search" {
    match { path_prefix = "/search" }

    retry {
      attempts     = 1
      status_codes = [503]
    }

    backend "consul" "search" {}
  }

  # The backend says that a repeated POST does no harm.
  rule "import" {
    match {
      path_prefix = "/import"
      methods     = ["POST"]
    }

    retry {
      on             = ["gateway-error"]
      non_idempotent = true
    }

    backend "consul" "catalog" {}
  }

  # Never twice: not even after a refused connection.
  rule "once" {
    match { path_prefix = "/pay" }

    retry { attempts = 0 }

    backend "consul" "payments" {}
  }

  # Switched off: what holds where nobody says anything (up to 2 retries of requests that surely had no effect).
  rule "pages" {
    retry { disabled = true }

    backend "consul" "catalog" {}
  }
}
