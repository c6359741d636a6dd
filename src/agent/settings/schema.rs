//! What may be written in the agent's settings.

use std::sync::LazyLock;

use crate::hcl::{BlockSchema, Occurs, Type};

/// The schema of the agent's settings; the reference is generated from it.
pub fn settings_schema() -> &'static BlockSchema {
    static SCHEMA: LazyLock<BlockSchema> = LazyLock::new(|| {
        BlockSchema::new("", &[], "The agent's settings.")
            .called("the agent's settings")
            .attribute(
                "gateways",
                Type::List(&Type::Name),
                None,
                "[\"edge\"]",
                "The gateways this agent serves. Under -dev: all that are declared.",
            )
            .attribute(
                "node_name",
                Type::Name,
                Some("the host's name"),
                "\"edge-1\"",
                "This agent's name in status and in Envoy's node id.",
            )
            .attribute(
                "data_dir",
                Type::String,
                Some("\"/opt/portreeve/data\""),
                "\"/var/lib/portreeve\"",
                "Where the agent keeps what survives a restart. Never private keys. Under -dev, where neither this nor -data-dir \
                 says otherwise, a directory for sockets alone: nothing survives.",
            )
            .attribute(
                "bind_addr",
                Type::IpAddress,
                Some("\"0.0.0.0\""),
                "\"10.0.0.5\"",
                "Where listeners without an address listen. 127.0.0.1 under -dev.",
            )
            .attribute(
                "log_level",
                Type::Word(&["trace", "debug", "info", "warn", "error"]),
                Some("\"info\""),
                "\"debug\"",
                "Changed by SIGHUP without a restart.",
            )
            .attribute(
                "log_json",
                Type::Bool,
                Some("false"),
                "true",
                "Log as JSON lines.",
            )
            .block(kv_documents_schema(), Occurs::Optional)
            .block(consul_schema(), Occurs::Optional)
            .block(super::catalog::schema(), Occurs::Optional)
            .block(super::nomad::schema(), Occurs::Optional)
            .block(mesh_schema(), Occurs::Optional)
            .block(super::vault::schema(), Occurs::Optional)
            .block(envoy_schema(), Occurs::Optional)
            .block(xds_schema(), Occurs::Optional)
            .block(
                BlockSchema::new("api", &[], "The agent's HTTP API, behind the CLI.")
                    .attribute(
                        "socket",
                        Type::String,
                        Some("\"<data_dir>/api.sock\""),
                        "\"/run/portreeve/api.sock\"",
                        "Unix socket, mode 0600.",
                    )
                    .attribute(
                        "address",
                        Type::SocketAddress,
                        None,
                        "\"127.0.0.1:7480\"",
                        "Loopback address that serves /ready and /metrics, nothing else.",
                    ),
                Occurs::Optional,
            )
    });
    &SCHEMA
}

fn kv_documents_schema() -> BlockSchema {
    BlockSchema::new("kv_documents", &[], "Documents in Consul KV, and what they may reach: who may write KV is not trusted with the machine.")
        .attribute("prefix", Type::String, Some("\"portreeve\""), "\"portreeve\"", "Documents are the keys below `<prefix>/config/`.")
        .attribute("files", Type::List(&Type::String), Some("[]"), "[\"/etc/ssl/edge/\"]", "Files that documents may name; a directory when it ends in \"/\".")
        .attribute("vault_paths", Type::List(&Type::String), Some("[\"*\"]"), "[\"secret/edge/\", \"pki_int/sign/edge\"]", "Vault paths that documents may name (`mount/path`, `mount/sign/role`); a prefix when it ends in \"/\". \"*\": whatever the agent's token may read.")
        .attribute("nomad_variables", Type::List(&Type::String), Some("[\"*\"]"), "[\"nomad/jobs/portreeve\", \"shop:edge/\"]", "Nomad variables that documents may name (`path`, or `namespace:path` where they name a namespace); a prefix when it ends in \"/\". \"*\": whatever the agent's token may read.")
        .attribute("addresses", Type::List(&Type::AddressPattern), None, "[\"10.0.0.0/8\", \"*.example.com\"]", "What static and dns upstreams may name: ranges, host names, `*.suffix`, or `*`. Left out: any address outside this machine and its links, and no host name, since whoever owns a name can point it anywhere.")
        .attribute("allow_loopback", Type::Bool, Some("false"), "true", "Lets them name loopback addresses, this machine's own name included; where the agent itself listens, never.")
        .attribute("allow_link_local", Type::Bool, Some("false"), "true", "Lets them name link-local addresses and cloud metadata services.")
}

pub(super) fn tls_client(schema: BlockSchema) -> BlockSchema {
    schema
        .attribute(
            "ca_file",
            Type::String,
            None,
            "\"/etc/ssl/ca.pem\"",
            "Authorities to trust, PEM.",
        )
        .attribute(
            "ca_path",
            Type::String,
            None,
            "\"/etc/ssl/ca.d\"",
            "Directory of such files.",
        )
        .attribute(
            "client_cert",
            Type::String,
            None,
            "\"/etc/ssl/agent.pem\"",
            "Client certificate, PEM.",
        )
        .attribute(
            "client_key",
            Type::String,
            None,
            "\"/etc/ssl/agent.key\"",
            "Its key, PEM.",
        )
        .attribute(
            "tls_server_name",
            Type::String,
            None,
            "\"server.dc1.consul\"",
            "The name expected in the server's certificate.",
        )
        .attribute(
            "tls_skip_verify",
            Type::Bool,
            Some("false"),
            "true",
            "Trusts any certificate. For tests.",
        )
}

fn consul_schema() -> BlockSchema {
    tls_client(BlockSchema::new(
        "consul",
        &[],
        "How to reach Consul. What is left out is taken from CONSUL_HTTP_ADDR and its kin.",
    ))
    .attribute(
        "address",
        Type::String,
        Some("\"127.0.0.1:8500\""),
        "\"https://127.0.0.1:8501\"",
        "host:port, http://, https:// or unix://.",
    )
    .attribute("token", Type::String, None, "\"...\"", "Prefer token_file.")
    .attribute(
        "token_file",
        Type::String,
        None,
        "\"/run/secrets/consul_token\"",
        "Read again when it changes; wins over a token.",
    )
    .block(
        BlockSchema::new(
            "login",
            &[],
            "A token by logging in with an identity that somebody else signed, in place of one that is given. Asked for again before it ends and when Consul no longer knows it; given back at the end.",
        )
        .required(
            "method",
            Type::String,
            "\"portreeve\"",
            "The auth method, as `portreeve setup consul -nomad-jwks-url=...` makes one.",
        )
        .required(
            "bearer_token_file",
            Type::String,
            "\"/secrets/nomad_consul.jwt\"",
            "The signed identity. Read at every login, so whoever signs it may renew it.",
        )
        .attribute(
            "token_sink_file",
            Type::String,
            None,
            "\"/secrets/portreeve_consul_token\"",
            "Keeps the token for the next start, in clear, mode 0600: put it beside the identity, on which the same rights hang. An agent that was killed goes on with it; without this file each such start leaves a token behind until its end. A file of its own: where a token of another login's is, it is left alone and nothing is kept.",
        ),
        Occurs::Optional,
    )
    .at_most_one_of(&["token", "login"])
    .at_most_one_of(&["token_file", "login"])
    .attribute(
        "namespace",
        Type::Name,
        None,
        "\"edge\"",
        "Consul Enterprise only.",
    )
    .attribute(
        "partition",
        Type::Name,
        None,
        "\"edge\"",
        "Consul Enterprise only.",
    )
    .attribute(
        "datacenter",
        Type::Name,
        None,
        "\"dc1\"",
        "Left out: the Consul agent's own.",
    )
    .attribute(
        "max_connections",
        Type::Integer(1, 100_000),
        Some("150"),
        "400",
        "How many services are watched on a connection of their own; the others are asked in turns. Consul grants one \
         client `limits.http_max_conns_per_client` (200), other programs of the machine included. No bound over \
         HTTP/2, which Consul speaks on its https port.",
    )
}

fn mesh_schema() -> BlockSchema {
    BlockSchema::new(
        "mesh",
        &[],
        "Makes the gateway a member of Consul's mesh, for upstreams with a `connect` block.",
    )
    .required(
        "service",
        Type::String,
        "\"edge-gw\"",
        "Who the gateway is there: the source of its intentions. It need not be registered.",
    )
    .attribute(
        "token_file",
        Type::String,
        None,
        "\"/run/secrets/consul_mesh_token\"",
        "A token for the gateway's certificate alone, with service:write on `service`. Left out: the `consul` block's. \
         Read again when it changes; wins over a token.",
    )
    .attribute("token", Type::String, None, "\"...\"", "Prefer token_file.")
    .attribute(
        "sidecar",
        Type::String,
        Some("\"<service>-sidecar-proxy\""),
        "\"edge-gw-sidecar-proxy\"",
        "The id of the gateway's own sidecar at this machine's Consul agent, for upstreams with `connect { sidecar = true }`.",
    )
}

fn envoy_schema() -> BlockSchema {
    BlockSchema::new("envoy", &[], "The Envoy beside this agent.")
        .attribute("supervise", Type::Bool, Some("false"), "true", "Start Envoy as a child and keep it. Under -dev: true. Otherwise Envoy is its own task or unit.")
        .attribute("binary", Type::String, Some("envoy in PATH"), "\"/usr/local/bin/envoy\"", "Envoy 1.36 to 1.40.")
        .attribute("concurrency", Type::Integer(1, 1024), None, "4", "Worker threads. Left out: one per hardware thread; 1 under -dev.")
        .attribute("log_level", Type::Word(&["trace", "debug", "info", "warning", "error", "critical", "off"]), Some("\"warning\""), "\"info\"", "Envoy's own log level.")
        .attribute("variant", Type::Word(&["delta", "sotw"]), Some("\"delta\""), "\"sotw\"", "Incremental or state-of-the-world xDS.")
        .attribute("drain_time", Type::Duration(1_000, 3_600_000), Some("\"20s\""), "\"60s\"", "How long connections of an Envoy that leaves are asked to close. 2s under -dev.")
        .attribute("max_downstream_connections", Type::Integer(1, 10_000_000), Some("50000"), "100000", "Client connections of all listeners together. Envoy needs twice as many open files (LimitNOFILE); the agent says so where it may not have them.")
        .attribute("stop_with_agent", Type::Bool, Some("true"), "false", "On SIGTERM, drain and stop the child Envoy too. false: it serves on and is adopted by the next agent. A killed agent always leaves it.")
}

fn xds_schema() -> BlockSchema {
    BlockSchema::new("xds", &[], "Where Envoys get their configuration.")
        .attribute(
            "socket",
            Type::String,
            Some("\"<data_dir>/xds.sock\""),
            "\"/run/portreeve/xds.sock\"",
            "Unix socket, mode 0600: it hands out private keys. With `uids` or `client` its mode is 0666, and whoever connects is known by its uid.",
        )
        .attribute(
            "uids",
            Type::List(&Type::Integer(0, 4_294_967_294)),
            Some("[]"),
            "[101]",
            "Users that may connect to the socket beside the agent's own and root, and have any gateway of this agent. The socket must stand where they may enter: the data directory lets in nobody.",
        )
        .block(
            BlockSchema::new("client", &[], "A user that may have some of this agent's gateways, over the socket. Several blocks of one user add up; one that `uids` lists too is an error.")
                .required("uid", Type::Integer(0, 4_294_967_294), "101", "The user its Envoy runs as.")
                .required("gateways", Type::List(&Type::Name), "[\"edge\"]", "Gateways it may be given."),
            Occurs::Many,
        )
        .block(
            BlockSchema::new("tcp", &[], "For remote Envoys, with mutual TLS.")
                .required(
                    "address",
                    Type::SocketAddress,
                    "\"10.0.0.5:7482\"",
                    "Where to listen.",
                )
                .required(
                    "ca_file",
                    Type::String,
                    "\"/etc/portreeve/envoy-ca.pem\"",
                    "Who signs the Envoys' certificates. This file and the two below are read again when they change.",
                )
                .required(
                    "cert_file",
                    Type::String,
                    "\"/etc/portreeve/xds.pem\"",
                    "Our own certificate.",
                )
                .required("key_file", Type::String, "\"/etc/portreeve/xds.key\"", "Its key.")
                .block(
                    BlockSchema::new(
                        "client",
                        &[],
                        "Which gateways a client certificate gets. `node.id` is only a label.",
                    )
                    .required(
                        "san",
                        Type::String,
                        "\"spiffe://example.com/envoy/edge-1\"",
                        "A URI or DNS name of the certificate.",
                    )
                    .required(
                        "gateways",
                        Type::List(&Type::Name),
                        "[\"edge\"]",
                        "Gateways it may be given.",
                    ),
                    Occurs::AtLeastOnce,
                ),
            Occurs::Optional,
        )
}
