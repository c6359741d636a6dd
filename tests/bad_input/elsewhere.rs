//! Bad input that is no document, for the page. What happens is shown by the tests that are named, through the real
//! programs where there are any; that these exist is checked with the other pages' proofs.

pub struct Area {
    pub title: &'static str,
    pub rows: &'static [Row],
}

pub struct Row {
    pub input: &'static str,
    pub outcome: &'static str,
    pub tests: &'static [&'static str],
}

const fn row(input: &'static str, outcome: &'static str, tests: &'static [&'static str]) -> Row {
    Row {
        input,
        outcome,
        tests,
    }
}

pub const AREAS: &[Area] = &[
    Area {
        title: "Settings",
        rows: &[
            row(
                "a misspelt block or attribute, a bracket never closed",
                "the agent does not start, and says file, line and the word that was probably meant; at a reload the old settings stay",
                &[
                    "a_slip_in_a_settings_file_is_never_left_out",
                    "settings_of_an_agent",
                ],
            ),
            row(
                "arbitrary bytes",
                "an error, never an end without words",
                &["fuzz_settings"],
            ),
            row(
                "no gateway to serve, a data directory that cannot be made, a socket that another agent holds",
                "exit code 1 with what is missing and the flag that gives it",
                &["what_cannot_start_says_why_and_exits_1"],
            ),
            row(
                "a host name where the agent is to listen",
                "exit code 1: an address is needed",
                &["where_to_listen_is_said_by_address"],
            ),
            row(
                "a Consul address that is none, a proxy in the environment",
                "the address is named at the start; proxies are not used",
                &[
                    "wrong_addresses_say_why",
                    "a_wrong_address_and_a_proxy_in_the_environment",
                ],
            ),
            row(
                "a token file that is missing, half written, or no token",
                "missing, an error at the start; empty, told until there is one, and no token of the environment is used; later the token of before stays, and the status says so",
                &[
                    "an_unreadable_file_at_start_is_an_error",
                    "a_token_file_without_a_token_is_told_of_until_there_is_one",
                    "half_written_and_missing_files_keep_the_old_token",
                    "a_file_that_is_no_token_is_not_read_whole",
                ],
            ),
            row(
                "a Vault credential that cannot be read, or holds what no token has",
                "its file is named, its content is not; read again until it is good",
                &["a_credential_that_cannot_be_read_is_named"],
            ),
            row(
                "two ways to log in to Vault, or two secret ids",
                "the settings are refused",
                &["one_login_and_one_secret_id"],
            ),
            row(
                "TLS files that hold nothing of use, or do not fit together",
                "an error at the start; when they change later the pair of before stays",
                &[
                    "unusable_trust_is_told_at_the_start",
                    "unusable_settings_are_an_error_at_the_start",
                    "a_rotated_client_certificate_is_taken_up_without_a_restart",
                ],
            ),
            row(
                "a data directory that others may use",
                "the default one of `-dev`: the agent does not start and says why; any other: it warns where others may write",
                &[
                    "a_dev_directory_that_others_may_use_is_refused",
                    "a_directory_that_others_may_write_is_told",
                ],
            ),
            row(
                "a damaged state file, a symbolic link in its place",
                "the agent does not start and says which and why; Envoy serves on",
                &[
                    "a_damaged_state_file_is_named_envoy_serves_on_and_deleting_it_helps",
                    "a_state_file_that_is_a_link_is_named_and_not_followed",
                ],
            ),
        ],
    },
    Area {
        title: "Keys and values in Consul KV, files of a directory",
        rows: &[
            row(
                "a key with other characters than letters, digits, `_`, `.`, `/` and `-`, or with a file extension",
                "not taken, named with how to write it; every other document goes on",
                &[
                    "keys_that_some_consul_refuses_are_never_asked_for",
                    "keys_that_every_consul_takes",
                ],
            ),
            row(
                "a value that is not UTF-8",
                "named; the key's last good version stays",
                &["what_cannot_be_taken_is_named"],
            ),
            row(
                "a value over 512 KiB, where Consul was told to take it",
                "named with its size; the key's last good version stays",
                &["a_value_that_is_too_large_is_named_and_the_rest_goes_on"],
            ),
            row(
                "a folder, as Consul's UI makes it: a key that ends in a slash",
                "passed over",
                &["first_listing_is_all_change"],
            ),
            row(
                "garbage, half an answer or endless news from Consul",
                "what is known stays",
                &[
                    "garbage_half_answers_and_floods_change_nothing",
                    "fuzz_kv_listings",
                    "fuzz_kv_bytes",
                ],
            ),
            row(
                "a file that cannot be read, or is being written",
                "named; its last good version stays",
                &[
                    "an_unreadable_file_is_named_and_its_last_version_stands",
                    "a_save_that_truncates_first_is_taken_whole",
                ],
            ),
            row(
                "more documents than memory should hold",
                "told; what is known stays",
                &["the_documents_together_are_bounded"],
            ),
        ],
    },
    Area {
        title: "Command line and API",
        rows: &[
            row(
                "a directory without documents",
                "exit code 1, with what counts as one",
                &["nothing_to_read_is_an_error"],
            ),
            row(
                "documents that do not validate",
                "`plan` and `apply` write nothing",
                &["refuses_what_does_not_validate", "validate_bad"],
            ),
            row(
                "files whose names cannot be keys",
                "refused, with the file",
                &["names_of_files"],
            ),
            row(
                "more than one transaction holds; a key that somebody changed meanwhile",
                "nothing is written",
                &["more_than_one_transaction", "lost_compare_and_set"],
            ),
            row(
                "a URL that is none, to `explain`",
                "an error that says what is missing",
                &["takes_urls_apart", "explains"],
            ),
            row(
                "a job other than the one that has the login or policy of that name, to `setup`",
                "refused before anything is written, with whose it is; `-replace-job` for a job that was renamed",
                &[
                    "consul_gets_what_the_job_needs_and_no_more",
                    "vault_gets_policies_and_a_login_for_the_job_alone",
                    "nomad_gets_a_policy_that_is_bound_to_the_job",
                ],
            ),
            row(
                "a token without the rights, to `setup`, `plan`, `apply`",
                "an error that names them",
                &["a_wrong_token_says_what_is_needed", "consul_away_or_refusing"],
            ),
            row(
                "an unknown path, method or parameter, a body over 64 KiB",
                "404, 405, 400 or 413 as JSON, with what was probably meant",
                &[
                    "wrong_paths_methods_and_sizes",
                    "keeps_repeated_and_refuses_unknown",
                ],
            ),
        ],
    },
    Area {
        title: "xDS",
        rows: &[
            row(
                "no node, an unknown gateway, one that this client may not have; a node, a name or a list that is too large",
                "a status with the reason, an event in the log; other streams go on",
                &["refuses_with_a_status_and_an_event"],
            ),
            row(
                "a type that is not served",
                "no answer and a line in the log; the stream's other types go on",
                &["an_unknown_type_is_left_unanswered_and_the_rest_goes_on"],
            ),
            row(
                "arbitrary requests, stale nonces, refusals that name nothing",
                "the stream ends with what was published",
                &[
                    "fuzz_delta_requests",
                    "fuzz_state_of_the_world_requests",
                    "scripts",
                    "refused_resources_do_not_keep_the_others_away",
                ],
            ),
            row(
                "another user at the socket; no client certificate, another authority's, another name's",
                "refused, an event in the log",
                &[
                    "another_uid_is_refused_even_where_the_socket_is_open_to_it",
                    "the_certificate_decides",
                    "without_a_known_certificate_nothing_is_given",
                ],
            ),
            row(
                "a client that does not read",
                "harms itself alone",
                &["a_stream_that_does_not_read_harms_itself_only"],
            ),
            row(
                "a client that drops all its names and asks for them again, without end, and confirms nothing",
                "one answer of a kind is under way to it, however often it asks; others get their changes",
                &["a_client_that_asks_in_a_loop_and_confirms_nothing_is_sent_one_answer"],
            ),
            row(
                "the same from a client that confirms each answer",
                "it is answered in full each time, to the end; others get their changes all the same",
                &["a_client_that_subscribes_in_a_loop_delays_nobody"],
            ),
            row(
                "a flood of confirmations and refusals of what was never sent, with words of 100 KB",
                "passed over, and told to nobody; it is served on, and others get their changes",
                &["answers_to_what_was_never_sent_are_passed_over"],
            ),
            row(
                "names that are invented without end; floods and lies by both dialects, from clients that read nothing",
                "at 32 MiB of names that nothing is published of a stream ends with a status, told in the log; Envoy gets its changes, no request is lost, and the memory is given back",
                &[
                    "envoys_that_flood_and_lie_harm_neither_requests_nor_changes",
                    "names_are_bounded_whatever_a_peer_does_with_them",
                    "names_of_what_is_published_are_never_too_many",
                ],
            ),
            row(
                "more than 16 streams on one connection",
                "they wait until others end, or are refused; other connections go on",
                &["streams_beyond_the_limit_wait"],
            ),
            row(
                "frames and headers that HTTP/2 forbids",
                "the stream or the connection ends with the error that RFC 9113 names; run by hand, as no package has h2spec",
                &["h2spec_finds_nothing_of_ours"],
            ),
        ],
    },
    Area {
        title: "Requests",
        rows: &[
            row(
                "no Host, two, one with a space, a control character or a user; another host in the request line",
                "400 or 404; no backend sees it",
                &["hostile_requests_reach_no_backend"],
            ),
            row(
                "a length and chunks, two lengths, lengths that are none, unknown encodings: smuggling",
                "400 or 501, and the connection closes: what follows is not taken for a request",
                &["hostile_requests_reach_no_backend"],
            ),
            row(
                "control characters and NUL in path, header or name; a header that goes on in the next line",
                "400; the folded header is one header",
                &["hostile_requests_reach_no_backend"],
            ),
            row(
                "paths with `..`, `//`, `%2F` or a fragment",
                "matched as what they mean, redirected there, or 400",
                &[
                    "http_at_the_edge_is_safe_by_default",
                    "hostile_requests_reach_no_backend",
                ],
            ),
            row(
                "header names with an underscore, more than 100 headers, more than 60 KiB of them",
                "400, 431; over HTTP/2 the stream is reset",
                &["http_at_the_edge_is_safe_by_default"],
            ),
            row(
                "`x-envoy-*`, X-Forwarded-*, X-Real-IP and Forwarded from a client, where no proxy is trusted",
                "removed; of X-Forwarded-For the connection's address is what counts",
                &["http_at_the_edge_is_safe_by_default"],
            ),
            row(
                "a client that sends its headers slowly, or nothing; too many connections",
                "cut off, refused",
                &[
                    "slow_clients_are_cut_off_where_the_listener_says_so",
                    "max_connections_counts_a_listeners_connections_over_all_certificates_delta",
                ],
            ),
            row(
                "a handshake without a name, or for one that no certificate has; an old version of TLS",
                "refused",
                &[
                    "https_serves_a_certificate_from_vault_and_refuses_what_it_should",
                    "tls_versions_alpn_and_clients_without_sni",
                ],
            ),
            row(
                "where a listener asks for client certificates: none, another authority's, a revoked one; headers that claim one",
                "refused in the handshake; the headers are removed",
                &[
                    "only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer_delta",
                    "backends_are_told_whose_certificate_it_was_and_never_what_the_client_says",
                ],
            ),
        ],
    },
    Area {
        title: "Consul's and Nomad's catalogs, the mesh",
        rows: &[
            row(
                "hosts, paths, policies or keys in tags that are hostile, mistaken or not allowed",
                "`not-allowed`, `invalid-value`, `unknown-key` at the tag; the service's last good version stays",
                &[
                    "hostile_and_mistaken_registrations_are_refused_with_a_reason",
                    "constraints_say_which_and_what_to_do",
                ],
            ),
            row(
                "a service whose name is no name (`../../etc`, `a/b`, line breaks, over 128 bytes) asks to be exposed",
                "it is left out and never asked about; the source says so, with the first such name; every other service is followed",
                &["hostile_service_names_get_no_host_and_harm_nobody"],
            ),
            row(
                "addresses, ports, weights and metadata that are hostile or too large",
                "the instance is left out, or the value bounded",
                &[
                    "hostile_registrations_are_bounded_or_left_out",
                    "fuzz_health_answers",
                    "hostile_registrations_of_nomad_are_bounded_or_left_out",
                    "fuzz_answers_of_nomad",
                ],
            ),
            row(
                "hostile names in a discovery chain",
                "`mesh-problem`; names are one segment of a path and nothing else",
                &["names_are_escaped_and_hostile_ids_are_refused"],
            ),
            row(
                "an unknown service",
                "`unknown-service`, with the name that was probably meant; 503",
                &["a_misspelt_service_is_told_alike_everywhere"],
            ),
            row(
                "a bad filter, an unknown datacenter or namespace",
                "`source-problem` with Consul's words; the last known instances stay",
                &[
                    "a_bad_filter_and_an_unknown_datacenter_say_so",
                    "a_namespace_that_consul_does_not_have_is_told",
                ],
            ),
            row(
                "a service that Consul takes for `tcp`, on an HTTP route",
                "`protocol-mismatch`; 503",
                &["a_service_that_speaks_tcp_is_no_backend_of_http"],
            ),
            row(
                "no intention that lets the gateway in",
                "`intention-denied` before a client meets it; 503",
                &["a_request_enters_the_mesh_and_intentions_are_known_beforehand"],
            ),
            row(
                "HTTP permissions that let no request of the gateway in",
                "`intention-denied` before a client meets it; 403 from the service's proxy",
                &[
                    "permissions_of_an_intention_are_foretold_request_by_request",
                    "permissions_that_let_nothing_in_are_told",
                ],
            ),
            row(
                "authorities of the mesh that are no certificates, or none at all",
                "`mesh-problem` with what is wrong; those of before stay",
                &["authorities_that_cannot_be_used_leave_those_of_before"],
            ),
            row(
                "an instance of a mesh service that shows another service's certificate, good as such",
                "no request of the service comes to it; `upstream-connection-failed`, 503, until it shows its own",
                &["an_instance_with_another_service_s_certificate_gets_no_request"],
            ),
            row(
                "a policy that lacks a rule",
                "`missing-permission`: the rule is named; what is known stays",
                &[
                    "no_rule_is_superfluous_and_its_loss_is_told_and_survived",
                    "a_mesh_token_without_its_right_says_so",
                    "a_mesh_token_that_loses_its_right_while_serving_loses_nothing_else",
                ],
            ),
            row(
                "a token that was deleted or has ended",
                "a new login, or `token-not-accepted`: `put a valid one into` its file; what is known stays",
                &[
                    "a_token_that_ends_in_use_is_told_and_a_new_one_in_its_file_mends_it",
                    "a_deleted_token_empties_nothing_and_a_new_one_in_its_file_mends_it",
                    "a_login_serves_and_survives_what_may_happen_to_its_token",
                    "requests_follow_nomad_and_the_health_that_envoy_finds",
                ],
            ),
            row(
                "towards Consul or Nomad: no client certificate where one is asked for, one that has ended, a server of another authority or name",
                "the problem names `client_cert`, or `ca_file` and `tls_server_name`; what is known stays",
                &[
                    "tls_verifies_and_http_2_carries_hundreds_of_watches_past_the_connection_limit",
                    "what_tls_says_of_certificates_is_told_apart",
                ],
            ),
            row(
                "a Consul without Connect, an agent without `nomad {}`",
                "said at the upstream; 503 for its rules",
                &[
                    "a_consul_without_connect_says_so",
                    "without_nomad_the_route_says_what_is_missing",
                ],
            ),
        ],
    },
    Area {
        title: "Vault and certificates",
        rows: &[
            row(
                "a mount of another type or version",
                "`vault-wrong-mount`, `vault-wrong-kv-version`; every other certificate serves",
                &[
                    "wrong_places_are_told_apart",
                    "every_bad_certificate_costs_its_own_name_alone",
                ],
            ),
            row(
                "a path that is not there, or climbs",
                "each with words of its own in `certificate-problem`",
                &["wrong_places_are_told_apart"],
            ),
            row(
                "a mount that is not there: of KV, of PKI, of the authorities of clients",
                "`vault-wrong-mount`: told apart from a path that is not there and from a missing right, also where Vault answers 403 \
                 for both. Where Vault itself does not tell them apart to this token, the message says so (`certificate-problem`)",
                &[
                    "wrong_places_are_told_apart",
                    "a_missing_mount_is_told_apart_from_a_missing_right",
                    "a_pki_mount_that_is_not_there_has_words_of_its_own",
                    "authorities_of_a_mount_that_is_not_there_or_another_engine_say_so",
                ],
            ),
            row(
                "a login at a mount where no auth method is",
                "the path that was asked, Vault's words, and to look at the mount first",
                &["a_workload_identity_logs_in_and_rotates"],
            ),
            row(
                "a field that is missing or no text, a certificate or key that is none, a key that does not fit, an expired certificate",
                "`certificate-problem`, `certificate-malformed`, `certificate-key-mismatch`, `certificate-expired`, with words that \
                 never quote a key; the last good pair stays, and every other certificate serves",
                &[
                    "every_bad_certificate_costs_its_own_name_alone",
                    "each_bad_case_has_its_own_message_and_keeps_the_last_good",
                    "every_fault_has_its_own_message_and_fix",
                    "no_fault_quotes_a_key",
                ],
            ),
            row(
                "authorities of clients, or revocation lists, that are none, of somebody else, or have run out",
                "each with words of its own; the last good ones stay, and a list that has run out lets in nobody",
                &[
                    "bad_authorities_are_told_apart_and_the_last_good_stay",
                    "a_list_that_is_wrong_from_the_start_keeps_the_port_closed",
                    "a_list_that_has_run_out_lets_in_nobody_until_there_is_a_newer_one",
                ],
            ),
            row(
                "a deleted or destroyed version",
                "told apart from a path that is not there; the last good pair stays",
                &["each_bad_case_has_its_own_message_and_keeps_the_last_good"],
            ),
            row(
                "a role that is not there, a name that it does not allow",
                "Vault's words, and where; the last good pair stays",
                &["refusals_name_the_rule_and_heal"],
            ),
            row(
                "a policy that lacks a rule",
                "path and capability are named; what is known stays",
                &[
                    "no_rule_of_kv_version_2_is_superfluous",
                    "no_rule_of_kv_version_1_is_superfluous",
                    "no_rule_of_pki_is_superfluous",
                ],
            ),
            row(
                "a token that was revoked or has ended",
                "a new login; without one it is told before its end",
                &[
                    "a_revoked_token_is_replaced_without_a_gap",
                    "a_given_token_that_nobody_renews_is_told_before_it_ends",
                    "a_given_token_that_ends_in_use_costs_nothing_that_is_served_and_another_in_its_file_mends_it",
                ],
            ),
            row(
                "a wrapping token that was used, or wraps something else",
                "said, with the suspicion that somebody else has it",
                &[
                    "a_wrapped_secret_id_is_unwrapped_once",
                    "a_wrapping_token_of_something_else_is_not_used",
                    "a_login_is_done_with_the_secret_id_of_before_where_the_file_gives_none",
                ],
            ),
        ],
    },
];
