//! What fuzzing kept, through the same targets, in every `make test`: an input that once was a finding stays one that is not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::targets;

/// So that what is committed stays small, and a replay short. `tests/fuzz/run.sh` keeps to the same.
const MOST_INPUTS: usize = 200;
const MOST_BYTES: u64 = 256 * 1024;

#[test]
fn fuzz_corpora_find_nothing() {
    let mut wrong = Vec::new();
    for target in targets() {
        let kept = inputs(&folder("corpus").join(target.name));
        if kept.is_empty() {
            wrong.push(format!("{} has no input", target.name));
        }
        // What once was a finding reaches nothing new when it is none any more: no run would keep it.
        let found = inputs(&folder("findings").join(target.name));
        for path in kept.into_iter().chain(found) {
            let input = std::fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| (target.run)(&input)).is_err() {
                wrong.push(format!("{} panics over {}", target.name, path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn fuzz_corpora_are_small_and_somebodys() {
    let names: BTreeSet<String> = targets().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), targets().count(), "two targets have one name");
    let corpora = inputs(&folder("corpus"));
    for corpus in corpora.iter().chain(&inputs(&folder("findings"))) {
        let name = corpus.file_name().unwrap().to_str().unwrap();
        assert!(names.contains(name), "{} is no target's", corpus.display());
        let sizes: Vec<u64> = inputs(corpus)
            .iter()
            .map(|input| input.metadata().unwrap().len())
            .collect();
        assert!(
            sizes.len() <= MOST_INPUTS && sizes.iter().sum::<u64>() <= MOST_BYTES,
            "{}: {} inputs, {} bytes",
            corpus.display(),
            sizes.len(),
            sizes.iter().sum::<u64>()
        );
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz")
        .join(name)
}

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
