//! `src/envoy/descriptors.bin`: the descriptors that envoy-types ships, without services, options and comments.
//!
//! `UPDATE_REFERENCE=1 cargo test --test golden descriptors` writes it after an update of envoy-types.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use prost_reflect::prost::Message;
use prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};

/// What a gateway's configuration can be made of. The rest of the API is services and reports.
const ROOTS: &[&str] = &[
    "envoy/config/",
    "envoy/extensions/",
    "envoy/type/",
    "envoy/admin/v3/config_dump",
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/service/runtime/v3/rtds.proto",
    "xds/type/matcher/",
];

/// Only option types are declared here.
const ANNOTATIONS: &[&str] = &[
    "validate/",
    "udpa/annotations/",
    "xds/annotations/",
    "envoy/annotations/",
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/protobuf/descriptor.proto",
];

#[test]
fn descriptors_are_those_of_envoy_types() {
    let shipped = std::fs::read(shipped_by_envoy_types()).unwrap();
    let expected = trimmed(FileDescriptorSet::decode(&shipped[..]).unwrap()).encode_to_vec();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/envoy/descriptors.bin");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert!(
        std::fs::read(path).unwrap() == expected,
        "{path} is not what envoy-types ships: run with UPDATE_REFERENCE=1"
    );
    prost_reflect::DescriptorPool::decode(&expected[..]).expect("descriptors that hold together");
}

fn shipped_by_envoy_types() -> PathBuf {
    // Without the filter cargo wants the packages of every platform, which a fresh machine has not fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .unwrap();
    let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
    manifest.with_file_name("src").join("generated/types.bin")
}

fn trimmed(set: FileDescriptorSet) -> FileDescriptorSet {
    let mut wanted: Vec<&str> = set
        .file
        .iter()
        .map(FileDescriptorProto::name)
        .filter(|name| ROOTS.iter().any(|root| name.starts_with(root)))
        .collect();
    let mut kept: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if is_annotation(name) || !kept.insert(name.to_owned()) {
            continue;
        }
        let file = set.file.iter().find(|file| file.name() == name).unwrap();
        wanted.extend(file.dependency.iter().map(String::as_str));
    }
    let files = set.file.into_iter().filter(|file| kept.contains(file.name()));
    FileDescriptorSet {
        file: files.map(without_extras).collect(),
    }
}

fn is_annotation(name: &str) -> bool {
    ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix))
}

fn without_extras(mut file: FileDescriptorProto) -> FileDescriptorProto {
    file.source_code_info = None;
    file.options = None;
    file.service.clear();
    file.extension.clear();
    file.public_dependency.clear();
    file.weak_dependency.clear();
    file.dependency.retain(|name| !is_annotation(name));
    file.message_type.iter_mut().for_each(strip_message);
    file.enum_type.iter_mut().for_each(strip_enum);
    file
}

fn strip_message(message: &mut prost_reflect::prost_types::DescriptorProto) {
    // `map_entry`, `packed` and `allow_alias` are the options that change how bytes are read.
    if !message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry())
    {
        message.options = None;
    }
    message.extension.clear();
    message.field.iter_mut().for_each(|field| {
        if field
            .options
            .as_ref()
            .is_some_and(|options| options.packed.is_none())
        {
            field.options = None;
        }
    });
    message
        .oneof_decl
        .iter_mut()
        .for_each(|oneof| oneof.options = None);
    message.nested_type.iter_mut().for_each(strip_message);
    message.enum_type.iter_mut().for_each(strip_enum);
}

fn strip_enum(names: &mut prost_reflect::prost_types::EnumDescriptorProto) {
    if !names
        .options
        .as_ref()
        .is_some_and(|options| options.allow_alias())
    {
        names.options = None;
    }
    names.value.iter_mut().for_each(|value| value.options = None);
}
