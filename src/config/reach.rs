//! Addresses that `static` and `dns` upstreams of documents from KV may name.
//!
//! A name is judged as it is written: Envoy resolves it later, and whoever owns it in DNS can then point it at this
//! machine or at a metadata service. So names are refused unless the settings list them or their suffix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRules {
    /// Ranges, names, `*.suffix`, `*`. None: every address but the refused ones, and no name.
    pub allowed: Option<Vec<Arc<str>>>,
    pub allow_loopback: bool,
    pub allow_link_local: bool,
    /// Where this agent itself listens: never allowed.
    pub own: Vec<SocketAddr>,
    /// Where the servers listen on this machine that the agent shows its tokens to. A listener in their place would be
    /// shown them.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// What this machine is called: such names lead to its own interfaces.
    pub own_names: Vec<Arc<str>>,
}

/// Why an address may not be used, and which setting would allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRefusal {
    pub why: &'static str,
    pub fix: &'static str,
}

const OWN: AddressRefusal = AddressRefusal {
    why: "this agent itself listens there",
    fix: "no setting allows it: name the service that is meant",
};
const OWN_PORT: AddressRefusal = AddressRefusal {
    why: "this agent itself listens at that port",
    fix: "take another port",
};
const SERVERS_PORT: AddressRefusal = AddressRefusal {
    why: "Consul, Vault or Nomad listens at that port of this machine: in its place the listener would be sent its clients' tokens",
    fix: "take another port, or declare the listener in a file of the agent's directory",
};
const LOOPBACK: AddressRefusal = AddressRefusal {
    why: "loopback addresses reach this machine's own interfaces (Envoy's admin, this agent, Consul, Vault)",
    fix: "register the service in Consul, or allow it with `kv_documents { allow_loopback = true }` in the agent's settings",
};
const LINK_LOCAL: AddressRefusal = AddressRefusal {
    why: "link-local addresses and their like reach cloud metadata services, which hand out credentials",
    fix: "register the service in Consul, or allow it with `kv_documents { allow_link_local = true }` in the agent's settings",
};
const NAME: AddressRefusal = AddressRefusal {
    why: "Envoy resolves the name when this check is over: whoever owns it in DNS could point it at this machine or at a metadata service",
    fix: "list the name or its suffix in `kv_documents { addresses = [\"*.example.com\"] }` in the agent's settings, or register the service in Consul",
};
const NOT_LISTED: AddressRefusal = AddressRefusal {
    why: "it is none of the addresses that the agent's settings allow",
    fix: "add it to `kv_documents { addresses = [...] }` in the agent's settings, or register the service in Consul",
};

/// As /etc/hosts of the common systems has them.
const LOOPBACK_NAMES: [&str; 7] = [
    "localhost",
    "localhost4",
    "localhost6",
    "localhost.localdomain",
    "localhost4.localdomain4",
    "localhost6.localdomain6",
    "loopback",
];

const METADATA_NAMES: [&str; 5] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
];

impl AddressRules {
    pub fn refusal(&self, host: &str, port: u16) -> Option<AddressRefusal> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => self.refusal_of_address(plain(address), port),
            Err(_) => self.refusal_of_name(&bare.trim_end_matches('.').to_ascii_lowercase(), port),
        }
    }

    /// Of a listener, whose address may be left to the settings.
    pub fn listener_refusal(&self, address: Option<IpAddr>, port: u16) -> Option<AddressRefusal> {
        let meets = |taken: &&SocketAddr| {
            let taken_address = plain(taken.ip());
            taken.port() == port
                && address.is_none_or(|address| {
                    let address = plain(address);
                    address == taken_address || address.is_unspecified() || taken_address.is_unspecified()
                })
        };
        if self.own.iter().any(|own| meets(&own)) {
            return Some(OWN_PORT);
        }
        let is_servers = self.servers.iter().any(|server| meets(&server));
        is_servers.then_some(SERVERS_PORT)
    }

    fn refusal_of_address(&self, address: IpAddr, port: u16) -> Option<AddressRefusal> {
        let loopback = is_loopback(address);
        if self.is_own(port, |own| own == address || (own.is_unspecified() && loopback)) {
            return Some(OWN);
        }
        if loopback && !self.allow_loopback {
            return Some(LOOPBACK);
        }
        if is_link_local(address) && !self.allow_link_local {
            return Some(LINK_LOCAL);
        }
        let allowed = self.allowed.as_ref()?;
        let listed = allowed
            .iter()
            .any(|pattern| &**pattern == "*" || range_holds(pattern, address));
        (!listed).then_some(NOT_LISTED)
    }

    fn refusal_of_name(&self, name: &str, port: u16) -> Option<AddressRefusal> {
        let own = self.own_names.iter().any(|own| own.eq_ignore_ascii_case(name));
        let loopback =
            own || LOOPBACK_NAMES.contains(&name) || name.ends_with(".localhost") || name.starts_with("ip6-");
        if own && self.is_own(port, |_| true) {
            return Some(OWN);
        }
        if loopback && self.is_own(port, |own| own.is_unspecified() || own.is_loopback()) {
            return Some(OWN);
        }
        if loopback && !self.allow_loopback {
            return Some(LOOPBACK);
        }
        let metadata = METADATA_NAMES.contains(&name) || name.ends_with(".metadata.google.internal");
        if metadata && !self.allow_link_local {
            return Some(LINK_LOCAL);
        }
        match &self.allowed {
            None if loopback || metadata => None,
            None => Some(NAME),
            Some(allowed) if allowed.iter().any(|pattern| pattern_takes(pattern, name)) => None,
            Some(_) => Some(NAME),
        }
    }

    fn is_own(&self, port: u16, reaches: impl Fn(IpAddr) -> bool) -> bool {
        self.own
            .iter()
            .any(|own| own.port() == port && reaches(plain(own.ip())))
    }
}

/// An IPv4 address in IPv6 clothes reaches what it reaches without them; so does one that a NAT64 translates.
fn plain(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., high, low] = v6.segments();
            Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into()
        }
        plain => plain,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    // All of 0.0.0.0/8: "this host".
    address.is_loopback()
        || address.is_unspecified()
        || matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0)
}

/// Link-local, and the addresses elsewhere that clouds use for the same.
fn is_link_local(address: IpAddr) -> bool {
    const ELSEWHERE: [Ipv4Addr; 3] = [
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(168, 63, 129, 16),
        Ipv4Addr::new(192, 0, 0, 192),
    ];
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || ELSEWHERE.contains(&v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.segments()[..2] == [0xfd00, 0x0ec2]
                || v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

fn pattern_takes(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches('.').to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => pattern == name,
    }
}

/// `address` or `address/length`.
fn range_holds(range: &str, address: IpAddr) -> bool {
    let (base, length) = range.split_once('/').unwrap_or((range, ""));
    let Ok(base) = base.parse::<IpAddr>() else {
        return false;
    };
    let (base, address, bits) = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            (u128::from(u32::from(base)), u128::from(u32::from(address)), 32)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => (u128::from(base), u128::from(address), 128),
        _ => return false,
    };
    let length = length.parse::<u32>().unwrap_or(bits).min(bits);
    (base ^ address).checked_shr(bits - length).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(rules: &AddressRules, host: &str, port: u16) -> Option<&'static str> {
        rules.refusal(host, port).map(|refusal| refusal.why)
    }

    #[test]
    fn listeners_keep_away_from_this_agent_and_from_servers_that_are_shown_tokens() {
        let rules = AddressRules {
            own: vec!["127.0.0.1:7480".parse().unwrap()],
            servers: vec!["127.0.0.1:8500".parse().unwrap()],
            ..AddressRules::default()
        };
        let why = |address: Option<&str>, port: u16| {
            let address = address.map(|address| address.parse().unwrap());
            rules.listener_refusal(address, port).map(|refusal| refusal.why)
        };
        for address in [
            None,
            Some("127.0.0.1"),
            Some("0.0.0.0"),
            Some("::"),
            Some("::ffff:127.0.0.1"),
        ] {
            assert_eq!(why(address, 7480), Some(OWN_PORT.why), "{address:?}");
            assert_eq!(why(address, 8500), Some(SERVERS_PORT.why), "{address:?}");
            assert_eq!(why(address, 8443), None, "{address:?}");
        }
        assert_eq!(why(Some("10.0.0.7"), 8500), None);
    }

    #[test]
    fn this_machine_and_the_clouds_metadata_are_refused_in_all_their_clothes() {
        let rules = AddressRules {
            own_names: vec!["edge-1".into()],
            ..AddressRules::default()
        };
        for host in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "localhost",
            "LOCALHOST",
            "app.localhost",
            "localhost.localdomain",
            "ip6-localhost",
            "ip6-loopback",
            "edge-1",
        ] {
            assert_eq!(why(&rules, host, 80), Some(LOOPBACK.why), "{host}");
        }
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "100.100.100.200",
            "168.63.129.16",
            "metadata.google.internal",
            "metadata",
        ] {
            assert_eq!(why(&rules, host, 80), Some(LINK_LOCAL.why), "{host}");
        }
        for host in ["10.0.0.7", "[2001:db8::7]", "192.0.2.1", "[64:ff9b::a00:7]"] {
            assert_eq!(why(&rules, host, 80), None, "{host}");
        }
        for host in ["legacy.example.com", "127.0.0.1.nip.io", "edge-1.example.com"] {
            assert_eq!(why(&rules, host, 80), Some(NAME.why), "{host}");
        }
    }

    #[test]
    fn what_the_agent_listens_on_is_never_allowed() {
        let rules = AddressRules {
            allowed: Some(vec!["*".into()]),
            allow_loopback: true,
            allow_link_local: true,
            servers: Vec::new(),
            own: vec![
                "127.0.0.1:7480".parse().unwrap(),
                "10.0.0.5:7482".parse().unwrap(),
                "[::]:7483".parse().unwrap(),
            ],
            own_names: vec!["edge-1".into()],
        };
        for (host, port) in [
            ("127.0.0.1", 7480),
            ("[::ffff:127.0.0.1]", 7480),
            ("localhost", 7480),
            ("10.0.0.5", 7482),
            ("edge-1", 7482),
            ("127.0.0.1", 7483),
            ("[::1]", 7483),
            ("ip6-localhost", 7483),
        ] {
            assert_eq!(why(&rules, host, port), Some(OWN.why), "{host}:{port}");
        }
        for (host, port) in [
            ("127.0.0.1", 8080),
            ("localhost", 8080),
            ("10.0.0.5", 8080),
            ("10.0.0.6", 7482),
            ("169.254.169.254", 80),
            ("a.example.com", 7480),
        ] {
            assert_eq!(why(&rules, host, port), None, "{host}:{port}");
        }
    }

    #[test]
    fn a_list_allows_what_it_lists_and_nothing_else() {
        let list = [
            "10.0.0.0/8",
            "192.0.2.7",
            "2001:db8::/32",
            "*.svc.example.com",
            "legacy.example.com",
        ];
        let rules = AddressRules {
            allowed: Some(list.into_iter().map(Into::into).collect()),
            ..AddressRules::default()
        };
        for host in [
            "10.200.0.1",
            "[::ffff:10.0.0.1]",
            "192.0.2.7",
            "[2001:db8:1::1]",
            "a.svc.example.com",
            "A.B.svc.Example.com",
            "legacy.example.com",
        ] {
            assert_eq!(why(&rules, host, 80), None, "{host}");
        }
        for host in ["11.0.0.1", "192.0.2.8", "[2001:db9::1]"] {
            assert_eq!(why(&rules, host, 80), Some(NOT_LISTED.why), "{host}");
        }
        for host in [
            "svc.example.com",
            "xsvc.example.com",
            "a.legacy.example.com",
            "example.com",
        ] {
            assert_eq!(why(&rules, host, 80), Some(NAME.why), "{host}");
        }
        // The list does not open this machine: that is said apart.
        let all = AddressRules {
            allowed: Some(vec!["*".into(), "127.0.0.0/8".into()]),
            ..AddressRules::default()
        };
        assert_eq!(why(&all, "127.0.0.1", 80), Some(LOOPBACK.why));
        assert_eq!(why(&all, "metadata.google.internal", 80), Some(LINK_LOCAL.why));
        assert_eq!(why(&all, "11.0.0.1", 80), None);
        assert_eq!(why(&all, "any.example.com", 80), None);
        assert!(range_holds("0.0.0.0/0", "1.2.3.4".parse().unwrap()));
    }
}
