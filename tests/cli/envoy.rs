//! Envoy as a unit or task of its own: what its commands refuse, and what they say.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::run::{portreeve, write};
use crate::support::scratch_directory;

const SUPERVISED: &str = "gateways = [\"edge\"]\n\nenvoy {\n  supervise = true\n}\n";

/// No Envoy answers: what gets as far as asking it would have drained it.
#[test]
fn an_envoy_is_drained_by_whom_it_belongs_to() {
    let directory = scratch_directory("cli");
    let plain = SUPERVISED.replace("true", "false");
    write(
        directory.path(),
        &[
            ("run/envoy.lock", "4711\n"),
            ("supervised.hcl", SUPERVISED),
            ("plain.hcl", &plain),
        ],
    );
    let path = directory.path().join("run/envoy.lock");
    let drain = |config: &str, more: &[&str]| {
        let arguments = ["envoy", "drain", "-runtime-dir=run", config];
        portreeve(directory.path(), &[&arguments[..], more].concat())
    };
    let asked = "cannot drain the Envoy of gateway edge";
    let lock = File::open(&path).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    insta::assert_snapshot!("drain_locked", drain("-config=plain.hcl", &[]).shown(&[]));
    let outcome = drain("-config=plain.hcl", &["-supervised"]);
    assert!(outcome.error.contains(asked), "{}", outcome.error);

    // Its unit is stopped on the way to a supervised Envoy: the settings say so already.
    let mut text = File::create(&path).unwrap();
    text.write_all(b"4711 envoy run\n").unwrap();
    let outcome = drain("-config=supervised.hcl", &[]);
    assert!(outcome.error.contains(asked), "{}", outcome.error);

    drop(lock);
    insta::assert_snapshot!(
        "drain_supervised",
        drain("-config=supervised.hcl", &[]).shown(&[])
    );
    for (config, more) in [
        ("-config=supervised.hcl", &["-supervised"][..]),
        ("-config=plain.hcl", &[]),
    ] {
        let outcome = drain(config, more);
        assert!(outcome.error.contains(asked), "{}", outcome.error);
    }
}

/// Their `data_dir` is unknown. In the default one may be another Envoy, or what was left there long ago.
#[test]
fn without_settings_only_a_directory_that_is_named_is_taken() {
    let directory = scratch_directory("cli");
    let slip = SUPERVISED.replace("supervise", "supervize");
    write(directory.path(), &[("agent.hcl", &slip)]);
    for command in ["run", "drain"] {
        let arguments = ["envoy", command, "-config=agent.hcl", "-gateway=edge"];
        let outcome = portreeve(directory.path(), &arguments);
        insta::assert_snapshot!(format!("{command}_unnamed"), outcome.shown(&[]));
    }
    let arguments = ["envoy", "drain", "-config=agent.hcl", "-runtime-dir=run"];
    let outcome = portreeve(directory.path(), &arguments);
    assert!(
        outcome.error.contains("the Envoy in run is drained all the same"),
        "{}",
        outcome.error
    );
}

/// Answers what an Envoy is asked before it is started, and then says how it was.
const ENVOY: &str = "#!/bin/sh\necho \"version: 0/1.36.0/Clean\" \"$@\"\n";

/// It becomes Envoy, which has a log of its own: there is no other place than standard error.
#[test]
fn envoy_run_says_what_it_goes_without() {
    let directory = scratch_directory("cli");
    // In the place of the two files: neither can be opened or replaced.
    let in_the_way = [("run/envoy.lock/a", ""), ("run/last-run.json/a", "")];
    write(directory.path(), &in_the_way);
    write(directory.path(), &[("envoy", ENVOY)]);
    make_executable(directory.path());
    let arguments = [
        "envoy",
        "run",
        "-gateway=edge",
        "-node=n",
        "-envoy=./envoy",
        "-wait=1ms",
    ];
    let more = ["-runtime-dir=run", "-xds-socket=xds.sock"];
    let outcome = portreeve(directory.path(), &[&arguments[..], &more].concat());
    assert_eq!(outcome.code, 0, "{}", outcome.error);
    assert!(outcome.out.contains("--disable-hot-restart"), "{}", outcome.out);
    for said in [
        "Warning: Envoy runs without a lock",
        "Warning: cannot keep what Envoy is started with",
        "(os error ",
        "Warning: no agent answers after 1ms",
    ] {
        assert!(outcome.error.contains(said), "no {said} in {}", outcome.error);
    }
}

fn make_executable(directory: &Path) {
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.join("envoy"), mode).unwrap();
}

/// An agent that is to supervise it one day would start another, and `envoy drain` asks in one of the two.
#[test]
fn envoy_run_tells_of_a_directory_that_is_not_that_of_the_settings() {
    let directory = scratch_directory("cli");
    let data = directory.path().join("data").display().to_string();
    let settings = format!("gateways = [\"edge\"]\ndata_dir = \"{data}\"\n");
    write(directory.path(), &[("envoy", ENVOY), ("agent.hcl", &settings)]);
    make_executable(directory.path());
    let run = |more: &[&str]| {
        let arguments = ["envoy", "run", "-config=agent.hcl", "-envoy=./envoy", "-wait=0s"];
        let outcome = portreeve(directory.path(), &[&arguments[..], more].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.error);
        outcome.error
    };
    let told = "Warning: -runtime-dir is run, but";
    let said = run(&["-runtime-dir=run"]);
    assert!(
        said.contains(told) && said.contains(&format!("this Envoy is in {data}/envoy/edge,")),
        "{said}"
    );
    for same in [&["-runtime-dir=./data/envoy/edge/"][..], &[]] {
        let said = run(same);
        assert!(!said.contains("-runtime-dir"), "{said}");
    }
}

/// Envoy would start, say so in one line among many, and never connect.
#[test]
fn envoy_run_starts_no_envoy_without_its_files() {
    let directory = scratch_directory("cli");
    let pem = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
    write(
        directory.path(),
        &[
            ("envoy", ENVOY),
            ("ca.pem", pem),
            ("cert.pem", pem),
            ("empty.pem", ""),
        ],
    );
    make_executable(directory.path());
    let run = |certificate: &str, key: &str| {
        let arguments = [
            "envoy",
            "run",
            "-gateway=edge",
            "-node=n",
            "-envoy=./envoy",
            "-wait=0s",
            "-runtime-dir=run",
            "-xds-address=127.0.0.1:1",
            "-xds-ca=./ca.pem",
            certificate,
            key,
        ];
        portreeve(directory.path(), &arguments)
    };
    insta::assert_snapshot!(
        "run_without_its_key",
        run("-xds-cert=./cert.pem", "-xds-key=./absent.key").shown(&[])
    );
    insta::assert_snapshot!(
        "run_with_an_empty_certificate",
        run("-xds-cert=./empty.pem", "-xds-key=./cert.pem").shown(&[])
    );
    let outcome = run("-xds-cert=./cert.pem", "-xds-key=./cert.pem");
    assert_eq!(outcome.code, 0, "{}", outcome.error);
}
