use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, RenameFlags};

use super::*;

struct Watched {
    directory: tempfile::TempDir,
    updates: mpsc::Receiver<Observation>,
    health: SourceHealth,
    cancel: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Watched {
    /// `root` below a fresh temporary directory, which `prepare` fills first.
    fn start(root: &str, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let (sender, updates) = mpsc::channel(16);
        // No rescan: what is seen was told by an event.
        let watch =
            DirectoryWatch::new(directory.path().join(root), sender).with_rescan(Duration::from_secs(3600));
        let (health, cancel) = (watch.health(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(watch.run(cancel.clone()));
        Self {
            directory,
            updates,
            health,
            cancel,
            _tasks: tasks,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn next(&mut self) -> DocumentsUpdate {
        let next = tokio::time::timeout(Duration::from_secs(5), self.updates.recv())
            .await
            .expect("an update");
        match next.unwrap() {
            Observation::Documents(update) => update,
            other => panic!("{other:?}"),
        }
    }

    async fn nothing(&mut self) {
        let quiet = tokio::time::timeout(Duration::from_millis(400), self.updates.recv()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    /// What changed and what is wrong, in whatever order they are seen; nothing is removed meanwhile.
    async fn until_changed_and_told(&mut self) -> (Vec<(String, String)>, Problem) {
        let mut changed = Vec::new();
        loop {
            let update = self.next().await;
            assert!(update.removed.is_empty(), "{:?}", update.removed);
            changed.extend(self.changed(&update));
            if let (false, Some(problem)) = (changed.is_empty(), update.problem) {
                return (changed, problem);
            }
        }
    }

    fn changed(&self, update: &DocumentsUpdate) -> Vec<(String, String)> {
        let name = |id: &DocumentId| {
            Path::new(id.as_str())
                .strip_prefix(self.directory.path())
                .unwrap()
                .display()
                .to_string()
        };
        update
            .changed
            .iter()
            .map(|document| (name(&document.id), document.text.to_string()))
            .collect()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[tokio::test]
async fn takes_documents_in_order_and_skips_the_rest() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir_all(top.join("d/sub")).unwrap();
        for name in [
            "b.hcl",
            "a.json",
            "sub/c.hcl",
            ".hidden.hcl",
            ".#b.hcl",
            "#b.hcl#",
            "b.hcl~",
            "b.hcl.swp",
            "readme",
        ] {
            fs::write(top.join("d").join(name), name).unwrap();
        }
        symlink(top.join("d"), top.join("d/loop")).unwrap();
    });
    let update = watched.next().await;
    assert_eq!(
        watched.changed(&update),
        pairs(&[
            ("d/a.json", "a.json"),
            ("d/b.hcl", "b.hcl"),
            ("d/sub/c.hcl", "sub/c.hcl")
        ])
    );
    assert!(update.complete && update.problem.is_none());
    assert!(watched.health.reading().ok);
    watched.nothing().await;
}

#[tokio::test]
async fn sees_edits_renames_removals_and_new_directories() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/a.hcl"), "1").unwrap();
    });
    watched.next().await;
    fs::write(watched.path("d/a.hcl"), "2").unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("d/a.hcl", "2")]));

    fs::write(watched.path("d/.a.hcl.tmp"), "3").unwrap();
    fs::rename(watched.path("d/.a.hcl.tmp"), watched.path("d/a.hcl")).unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("d/a.hcl", "3")]));

    fs::create_dir(watched.path("d/new")).unwrap();
    fs::write(watched.path("d/new/n.hcl"), "n").unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("d/new/n.hcl", "n")]));
    fs::write(watched.path("d/new/n.hcl"), "m").unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("d/new/n.hcl", "m")]));

    fs::remove_file(watched.path("d/a.hcl")).unwrap();
    let update = watched.next().await;
    assert_eq!(update.removed.len(), 1);
    assert!(update.removed[0].as_str().ends_with("d/a.hcl"));
    watched.cancel.cancel();
}

#[tokio::test]
async fn a_swapped_symlink_is_a_new_directory() {
    let mut watched = Watched::start("current", |top| {
        for (release, text) in [("r1", "one"), ("r2", "two")] {
            fs::create_dir(top.join(release)).unwrap();
            fs::write(top.join(release).join("a.hcl"), text).unwrap();
        }
        symlink(top.join("r1"), top.join("current")).unwrap();
    });
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("current/a.hcl", "one")]));
    symlink(watched.path("r2"), watched.path("next")).unwrap();
    fs::rename(watched.path("next"), watched.path("current")).unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("current/a.hcl", "two")]));
    assert!(update.removed.is_empty());
    fs::write(watched.path("r2/a.hcl"), "two and a half").unwrap();
    let update = watched.next().await;
    assert_eq!(
        watched.changed(&update),
        pairs(&[("current/a.hcl", "two and a half")])
    );
}

#[tokio::test]
async fn a_save_that_truncates_first_is_taken_whole() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/a.hcl"), "0").unwrap();
    });
    watched.next().await;
    for round in 1..10 {
        fs::write(watched.path("d/a.hcl"), "").unwrap();
        tokio::time::sleep(Duration::from_millis(4 * round)).await;
        fs::write(watched.path("d/a.hcl"), round.to_string()).unwrap();
        let update = watched.next().await;
        assert_eq!(
            watched.changed(&update),
            pairs(&[("d/a.hcl", &round.to_string())])
        );
    }
}

#[tokio::test]
async fn a_vanished_directory_keeps_everything() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/a.hcl"), "1").unwrap();
    });
    watched.next().await;
    fs::rename(watched.path("d"), watched.path("away")).unwrap();
    let update = watched.next().await;
    assert!(update.removed.is_empty() && update.complete);
    assert!(update.problem.unwrap().message.contains("cannot be read"));
    fs::rename(watched.path("away"), watched.path("d")).unwrap();
    let update = watched.next().await;
    assert!(update.changed.is_empty() && update.problem.is_none());
}

#[tokio::test]
async fn an_unreadable_file_is_named_and_its_last_version_stands() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/a.hcl"), "1").unwrap();
        fs::write(top.join("d/b.hcl"), "1").unwrap();
    });
    watched.next().await;
    fs::write(watched.path("d/a.hcl"), [0xff, 0xfe]).unwrap();
    let update = watched.next().await;
    assert!(update.changed.is_empty() && update.removed.is_empty());
    let problem = update.problem.unwrap();
    assert!(problem.message.contains("d/a.hcl: not UTF-8"), "{problem}");
    fs::write(watched.path("d/a.hcl"), "2").unwrap();
    let update = watched.next().await;
    assert_eq!(watched.changed(&update), pairs(&[("d/a.hcl", "2")]));
    assert!(update.problem.is_none());
}

#[tokio::test]
async fn not_there_at_start_is_not_empty() {
    let mut watched = Watched::start("d", |_| {});
    let update = watched.next().await;
    assert!(!update.complete && update.problem.is_some());
    fs::create_dir(watched.path("d")).unwrap();
    let update = watched.next().await;
    assert!(update.complete && update.problem.is_none() && update.changed.is_empty());
}

#[test]
fn one_look_for_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.hcl"), "x").unwrap();
    let listing = read_documents(directory.path(), |_, _| false).unwrap();
    assert_eq!((listing.documents.len(), listing.unreadable.len()), (1, 0));
    assert_eq!(
        read_documents(&directory.path().join("a.hcl"), |_, _| false)
            .unwrap()
            .documents
            .len(),
        1
    );
    assert!(read_documents(&directory.path().join("none"), |_, _| false).is_err());
}

#[test]
fn the_documents_together_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a.hcl", "b.hcl", "c.hcl"] {
        fs::write(directory.path().join(name), "# 0123456789\n".repeat(100)).unwrap();
    }
    let mut scanner = Scanner::new(directory.path().to_owned(), |_, _| false).with_bound(3000);
    for _ in 0..2 {
        let scan = scanner.scan();
        assert_eq!(scan.documents.len(), 2);
        let (path, reason) = scan.unreadable.first_key_value().unwrap();
        assert!(path.ends_with("c.hcl"), "{path}");
        assert!(reason.contains("exceed 2 KiB together"), "{reason}");
    }
}

#[tokio::test]
async fn what_went_since_the_last_run_is_told_as_removed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("documents");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.hcl"), "new").unwrap();
    fs::write(root.join("b.hcl"), "same").unwrap();
    let file = |path: &Path, text: &str| Document {
        id: DocumentId::File(path.to_string_lossy().into()),
        text: text.into(),
        order: 0,
        version: 0,
    };
    let known = [
        file(&root.join("a.hcl"), "old"),
        file(&root.join("b.hcl"), "same"),
        file(&root.join("gone.hcl"), "x"),
        // Another directory whose name begins alike.
        file(&directory.path().join("documents-2/a.hcl"), "x"),
    ];
    let (sender, mut updates) = mpsc::channel(16);
    let watch = DirectoryWatch::new(&root, sender).with_known(&known);
    assert!(watch.owns(&known[2].id) && !watch.owns(&known[3].id));
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.run(CancellationToken::new()));
    let Some(Observation::Documents(update)) = updates.recv().await else {
        panic!("no documents");
    };
    assert!(update.complete);
    assert_eq!(update.changed, [file(&root.join("a.hcl"), "new")]);
    assert_eq!(update.removed, [known[2].id.clone()]);
}

/// A file system that is not there leaves what lies below it as it was.
#[tokio::test]
async fn a_directory_that_cannot_be_looked_at_is_not_gone() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir_all(top.join("mnt/teams")).unwrap();
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("mnt/teams/shop.hcl"), "a").unwrap();
        fs::write(top.join("d/edge.hcl"), "b").unwrap();
        symlink(top.join("mnt/teams"), top.join("d/teams")).unwrap();
        // Names no document, and leads nowhere: nobody's trouble.
        symlink(top.join("nowhere"), top.join("d/README")).unwrap();
    });
    let update = watched.next().await;
    assert_eq!(update.changed.len(), 2);
    assert_eq!(update.problem, None);

    fs::rename(watched.path("mnt"), watched.path("away")).unwrap();
    fs::write(watched.path("d/edge.hcl"), "c").unwrap();
    // Each of the two may be seen first.
    let (changed, problem) = watched.until_changed_and_told().await;
    assert_eq!(changed, pairs(&[("d/edge.hcl", "c")]));
    assert!(problem.message.contains("d/teams: No such file"), "{problem:?}");

    fs::rename(watched.path("away"), watched.path("mnt")).unwrap();
    fs::write(watched.path("d/edge.hcl"), "d").unwrap();
    let (mut changed, mut is_over) = (Vec::new(), false);
    while !is_over || changed.is_empty() {
        let update = watched.next().await;
        assert!(update.removed.is_empty(), "{:?}", update.removed);
        is_over |= update.problem.is_none();
        changed.extend(watched.changed(&update));
    }
    assert_eq!(changed, pairs(&[("d/edge.hcl", "d")]));
    // Taken away by name, it is gone.
    fs::remove_file(watched.path("d/teams")).unwrap();
    assert_eq!(watched.next().await.removed.len(), 1);
}

#[tokio::test]
async fn an_empty_directory_in_the_place_of_one_with_documents_removes_none() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/edge.hcl"), "a").unwrap();
    });
    assert_eq!(watched.next().await.changed.len(), 1);
    fs::rename(watched.path("d"), watched.path("unmounted")).unwrap();
    fs::create_dir(watched.path("d")).unwrap();
    let update = loop {
        let update = watched.next().await;
        // For a moment it may have been seen missing.
        if update
            .problem
            .as_ref()
            .is_some_and(|problem| problem.message.contains("is empty"))
        {
            break update;
        }
    };
    assert!(update.removed.is_empty(), "{:?}", update.removed);
    fs::remove_dir(watched.path("d")).unwrap();
    fs::rename(watched.path("unmounted"), watched.path("d")).unwrap();
    let update = loop {
        let update = watched.next().await;
        if update.problem.is_none() {
            break update;
        }
    };
    assert!(
        update.removed.is_empty() && update.changed.is_empty(),
        "{update:?}"
    );
    // The same directory without its last document is meant so.
    fs::remove_file(watched.path("d/edge.hcl")).unwrap();
    let update = watched.next().await;
    assert_eq!(update.removed.len(), 1, "{update:?}");
}

/// Below the root, what is beside it changes as ever.
#[tokio::test]
async fn an_empty_directory_in_the_place_of_a_subdirectory_removes_none_either() {
    let mut watched = Watched::start("d", |top| {
        fs::create_dir_all(top.join("d/teams")).unwrap();
        fs::write(top.join("d/teams/shop.hcl"), "a").unwrap();
        fs::write(top.join("d/edge.hcl"), "b").unwrap();
    });
    assert_eq!(watched.next().await.changed.len(), 2);
    fs::create_dir(watched.path("empty")).unwrap();
    // At one stroke, as a file system goes: between two steps it would not be there at all, which is a deletion.
    let [here, there] = ["d/teams", "empty"].map(|name| watched.path(name));
    rustix::fs::renameat_with(CWD, here, CWD, there, RenameFlags::EXCHANGE).unwrap();
    fs::write(watched.path("d/edge.hcl"), "c").unwrap();
    let (changed, problem) = watched.until_changed_and_told().await;
    assert!(problem.message.contains("d/teams: is empty"), "{problem:?}");
    assert_eq!(changed, pairs(&[("d/edge.hcl", "c")]));
}

#[tokio::test]
async fn a_root_that_is_empty_after_a_restart_is_doubted_unless_something_is_in_it() {
    for (left, removed) in [(None, 0), (Some("README"), 1)] {
        let directory = tempfile::tempdir().unwrap();
        let known = Document {
            id: DocumentId::File(directory.path().join("edge.hcl").to_string_lossy().into()),
            text: "a".into(),
            order: 0,
            version: 0,
        };
        if let Some(name) = left {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let (sender, mut updates) = mpsc::channel(16);
        let watch = DirectoryWatch::new(directory.path(), sender).with_known(&[known]);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch.run(CancellationToken::new()));
        let Some(Observation::Documents(update)) = updates.recv().await else {
            panic!("an update")
        };
        assert_eq!(update.removed.len(), removed);
        assert_eq!(
            (update.problem.is_none(), update.complete),
            (removed > 0, removed > 0)
        );
    }
}
