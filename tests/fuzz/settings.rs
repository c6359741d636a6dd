use portreeve::agent::settings::{Flags, Settings};
use proptest::prelude::*;

use crate::mutation::mutated;

const SETTINGS: &str = r#"
gateways  = ["edge"]
node_name = "node-1"
bind_addr = "127.0.0.1"
data_dir  = "/tmp/none"
log_level = "info"

consul {
  address    = "127.0.0.1:8500"
  token_file = "/none"
}

kv_documents {
  prefix         = "portreeve"
  allow_loopback = true
}

vault {
  address       = "http://127.0.0.1:8200"
  poll_interval = "1s"
  approle {
    role_id        = "a"
    secret_id_file = "/none"
  }
}

envoy {
  supervise   = true
  concurrency = 1
  drain_time  = "2s"
  variant     = "delta"
}

xds {
  tcp {
    address = "127.0.0.1:18000"
  }
}

api {
  address = "127.0.0.1:19000"
}
"#;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_settings(text in mutated(vec![SETTINGS.to_owned()])) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("portreeve.hcl");
        std::fs::write(&path, text).unwrap();
        let flags = Flags { config: vec![path], ..Flags::default() };
        // Settings or problems; never a panic.
        let _ = Settings::load(&flags, "host");
    }
}
