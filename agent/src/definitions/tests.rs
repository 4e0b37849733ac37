use std::fs;

use crate::checks::Scripts;
use muster_catalog::Name;
use tempfile::TempDir;

use super::*;
use crate::local::{LocalConfig, LocalState, Source};

fn service(name: &str) -> String {
    format!("[service]\nname = \"{name}\"\nport = 80\n")
}

fn put(directory: &TempDir, file: &str, text: &str) {
    let beside = directory.path().join(format!(".{file}.new"));
    fs::write(&beside, text).unwrap();
    fs::rename(beside, directory.path().join(file)).unwrap();
}

fn ids(scan: &Scan) -> Vec<String> {
    scan.services.iter().map(|service| service.definition.id.to_string()).collect()
}

#[test]
fn files_are_taken_up_changed_and_removed() {
    let directory = TempDir::new().unwrap();
    let (mut definitions, start) = (Definitions::new(directory.path()), Instant::now());
    put(&directory, "a.toml", &service("a"));
    fs::write(directory.path().join("notes.txt"), "no definition").unwrap();
    fs::write(directory.path().join(".b.toml.swp"), "no definition").unwrap();
    assert_eq!(ids(&definitions.scan(start)), ["a"], "the first scan takes files as they are");

    put(&directory, "b.toml", &service("b"));
    let scan = definitions.scan(start);
    assert_eq!((ids(&scan), scan.unsettled), (vec!["a".to_owned()], true), "not before it stood still");
    let scan = definitions.scan(start + SETTLE);
    assert_eq!((ids(&scan), scan.unsettled), (vec!["a".to_owned(), "b".to_owned()], false));

    fs::remove_file(directory.path().join("a.toml")).unwrap();
    let later = start + SETTLE * 2;
    assert_eq!(ids(&definitions.scan(later)), ["a", "b"], "an editor may be replacing it");
    assert_eq!(ids(&definitions.scan(later + SETTLE)), ["b"]);
}

#[test]
fn a_bad_file_keeps_its_last_good_definition() {
    let directory = TempDir::new().unwrap();
    let (mut definitions, start) = (Definitions::new(directory.path()), Instant::now());
    put(&directory, "a.toml", &service("a"));
    assert!(definitions.scan(start).problems.is_empty());

    put(&directory, "a.toml", "[service]\nname = \"a\"\nport = \"eighty\"\n");
    definitions.scan(start);
    let scan = definitions.scan(start + SETTLE);
    assert_eq!(ids(&scan), ["a"]);
    assert_eq!(scan.problems.len(), 1);
    for part in ["a.toml:3: ", "service.port", "\"eighty\"", "last good definition"] {
        assert!(scan.problems[0].contains(part), "{:?} lacks {part:?}", scan.problems);
    }

    put(&directory, "a.toml", &service("better"));
    definitions.scan(start + SETTLE);
    let scan = definitions.scan(start + SETTLE * 2);
    assert_eq!((ids(&scan), scan.problems.len()), (vec!["better".to_owned()], 0));
}

#[test]
fn a_doubled_id_names_both_files_and_the_first_wins() {
    let directory = TempDir::new().unwrap();
    put(&directory, "a.toml", &service("web"));
    put(&directory, "b.toml", &service("web"));
    let check = "[[service.checks]]\nid = \"up\"\ntcp = \"localhost:1\"\n";
    put(&directory, "c.toml", &(service("c") + check));
    put(&directory, "d.toml", &(service("d") + check));
    let scan = Definitions::new(directory.path()).scan(Instant::now());
    assert_eq!(ids(&scan), ["web", "c"]);
    assert!(scan.services[0].path.ends_with("a.toml"));
    assert_eq!(scan.problems.len(), 2);
    for (problem, parts) in scan.problems.iter().zip([["b.toml", "a.toml", "\"web\""], ["d.toml", "c.toml", "\"up\""]])
    {
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
    }
}

#[test]
fn a_directory_that_cannot_be_listed_removes_nothing() {
    let directory = TempDir::new().unwrap();
    let inner = directory.path().join("services.d");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("a.toml"), service("a")).unwrap();
    let (mut definitions, start) = (Definitions::new(&inner), Instant::now());
    definitions.scan(start);
    fs::rename(&inner, directory.path().join("elsewhere")).unwrap();
    for step in 1..4 {
        let scan = definitions.scan(start + SETTLE * step);
        assert_eq!(ids(&scan), ["a"]);
        assert!(scan.problems[0].contains("it does not exist; the services known so far stay"), "{:?}", scan.problems);
    }
}

/// One entry of every kind that can be no definition, beside two that are.
#[test]
fn an_entry_that_is_no_file_harms_itself_alone() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    put(&directory, "a.toml", &service("a"));
    let (mut definitions, start) = (Definitions::new(directory.path()), Instant::now());
    assert_eq!(ids(&definitions.scan(start)), ["a"]);

    assert!(std::process::Command::new("mkfifo").arg(path("fifo.toml")).status().unwrap().success());
    std::os::unix::fs::symlink("loop.toml", path("loop.toml")).unwrap();
    std::os::unix::fs::symlink("/nonexistent/x", path("dangling.toml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path("endless.toml")).unwrap();
    fs::create_dir(path("folder.toml")).unwrap();
    let not_utf8: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(b"n\xff.toml".to_vec());
    fs::write(path("").join(not_utf8), service("nameless")).unwrap();
    fs::write(path("huge.toml"), "#".repeat(2 << 20)).unwrap();
    put(&directory, "z.toml", &service("z"));
    assert!(definitions.scan(start).unsettled);
    let scan = definitions.scan(start + SETTLE);
    assert_eq!((ids(&scan), scan.unsettled), (vec!["a".to_owned(), "z".to_owned()], false));
    let expected = [
        ("dangling.toml", "a link to a file that does not exist"),
        ("endless.toml", "a device"),
        ("fifo.toml", "a FIFO"),
        ("huge.toml", "longer than 1048576 bytes"),
        ("loop.toml", "cannot be opened"),
        ("n\u{fffd}.toml", "not UTF-8"),
    ];
    assert_eq!(scan.problems.len(), expected.len(), "{:#?}", scan.problems);
    for (problem, (file, part)) in scan.problems.iter().zip(expected) {
        assert!(problem.contains(file) && problem.contains(part), "{problem}");
    }

    // What was good before stays, and is taken up again when it is a file once more.
    fs::remove_file(path("a.toml")).unwrap();
    std::os::unix::fs::symlink("a.toml", path("a.toml")).unwrap();
    definitions.scan(start + SETTLE * 2);
    let scan = definitions.scan(start + SETTLE * 20);
    assert_eq!(ids(&scan), ["a", "z"]);
    assert!(scan.problems[0].contains("a.toml") && scan.problems[0].contains("last good"), "{:?}", scan.problems);
    fs::remove_file(path("a.toml")).unwrap();
    put(&directory, "a.toml", &service("better"));
    definitions.scan(start + SETTLE * 21);
    assert_eq!(ids(&definitions.scan(start + SETTLE * 22)), ["better", "z"]);
}

#[test]
fn a_limit_leaves_out_what_is_new_and_never_what_is_in_force() {
    let directory = TempDir::new().unwrap();
    (0..MAX_FILES).for_each(|index| {
        fs::write(directory.path().join(format!("s{index:04}.toml")), service(&format!("s{index}"))).unwrap()
    });
    let (mut definitions, start) = (Definitions::new(directory.path()), Instant::now());
    let before = definitions.scan(start);
    assert_eq!((before.services.len(), before.problems.len()), (MAX_FILES, 0));
    put(&directory, "a-new.toml", &service("new"));
    for definitions in [&mut definitions, &mut Definitions::resume(directory.path(), &before.services)] {
        definitions.scan(start + SETTLE);
        let scan = definitions.scan(start + SETTLE * 2);
        assert_eq!(scan.services, before.services);
        assert!(scan.problems.len() == 1 && scan.problems[0].contains("1 files beyond"), "{:?}", scan.problems);
    }
    // Room is made.
    fs::remove_file(directory.path().join("s0000.toml")).unwrap();
    for step in [10, 20, 30] {
        definitions.scan(start + SETTLE * step);
    }
    let scan = definitions.scan(start + SETTLE * 40);
    assert_eq!((ids(&scan)[0].as_str(), scan.services.len(), scan.problems.len()), ("new", MAX_FILES, 0));
}

#[test]
fn the_limit_of_services_leaves_out_what_is_new() {
    let directory = TempDir::new().unwrap();
    let file = |from: usize, count: usize| -> String {
        (from..from + count).map(|id| format!("[[services]]\nname = \"s{id}\"\n")).collect()
    };
    for part in 0..16 {
        put(&directory, &format!("m{part:02}.toml"), &file(part * 256, 256));
    }
    let (mut definitions, start) = (Definitions::new(directory.path()), Instant::now());
    let before = definitions.scan(start);
    assert_eq!((before.services.len(), before.problems.len()), (MAX_SERVICES, 0));
    put(&directory, "a-new.toml", &file(9000, 2));
    definitions.scan(start);
    let scan = definitions.scan(start + SETTLE);
    assert_eq!((scan.services == before.services, scan.problems.len()), (true, 2), "{:?}", scan.problems);
    assert!(scan.problems.iter().all(|problem| problem.contains("a-new.toml") && problem.contains("beyond 4096")));
}

#[test]
fn what_was_in_force_outlives_the_agent_where_a_file_cannot_be_taken_up() {
    let directory = TempDir::new().unwrap();
    ["a", "b", "c"].iter().for_each(|name| put(&directory, &format!("{name}.toml"), &service(name)));
    let last = Definitions::new(directory.path()).scan(Instant::now()).services;

    put(&directory, "a.toml", "[service");
    put(&directory, "b.toml", &service("better"));
    fs::remove_file(directory.path().join("c.toml")).unwrap();
    let scan = Definitions::resume(directory.path(), &last).scan(Instant::now());
    assert_eq!(ids(&scan), ["a", "better"], "the bad one stays, what was changed or removed meanwhile is");
    assert!(scan.problems.len() == 1 && scan.problems[0].contains("last good definition"), "{:?}", scan.problems);

    fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(ids(&Definitions::resume(directory.path(), &last).scan(Instant::now())), ["a", "b", "c"]);
}

#[tokio::test]
async fn the_directory_is_followed_live() {
    let directory = TempDir::new().unwrap();
    put(&directory, "a.toml", &service("a"));
    let node = Name::host("node", "n1").unwrap();
    let (state, handle) = LocalState::open(LocalConfig { node, data_dir: None, scripts: Scripts::Off }).unwrap();
    let (shutdown, (problems, mut shown)) = (CancellationToken::new(), watch::channel(Arc::default()));
    let owner = tokio::spawn(state.run(shutdown.clone()));
    let (seat, _) = RemovalSeat::new(brake::MassRemoval::default(), 1, Vec::new());
    let follower = follow(directory.path().to_owned(), handle.clone(), problems, seat, shutdown.clone());
    let follower = tokio::spawn(follower);
    let mut rows = handle.watch();

    let has = |names: &'static [&'static str]| {
        move |rows: &Arc<crate::local::LocalRows>| {
            rows.instances.iter().map(|instance| &*instance.id).eq(names.iter().copied())
        }
    };
    rows.wait_for(has(&["a"])).await.unwrap();
    put(&directory, "b.toml", &service("b"));
    rows.wait_for(has(&["a", "b"])).await.unwrap();
    put(&directory, "a.toml", "[service");
    shown.wait_for(|problems| problems.len() == 1).await.unwrap();
    assert!(has(&["a", "b"])(&handle.rows()));
    fs::remove_file(directory.path().join("b.toml")).unwrap();
    rows.wait_for(has(&["a"])).await.unwrap();
    let listing = handle.list().await.unwrap();
    assert!(matches!(&listing.services[0].source, Source::File(path) if path.ends_with("a.toml")));

    shutdown.cancel();
    owner.await.unwrap().unwrap();
    follower.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_directory_that_is_emptied_is_held_and_an_operator_lets_it_go() {
    let directory = TempDir::new().unwrap();
    let names = ["a", "b", "c", "d"];
    names.iter().for_each(|name| put(&directory, &format!("{name}.toml"), &service(name)));
    let node = Name::host("node", "n1").unwrap();
    let (state, handle) = LocalState::open(LocalConfig { node, data_dir: None, scripts: Scripts::Off }).unwrap();
    let (shutdown, (problems, _shown)) = (CancellationToken::new(), watch::channel(Arc::default()));
    let owner = tokio::spawn(state.run(shutdown.clone()));
    let (seat, removals) = RemovalSeat::new(brake::MassRemoval::default(), 1, Vec::new());
    let follower = follow(directory.path().to_owned(), handle.clone(), problems, seat, shutdown.clone());
    let follower = tokio::spawn(follower);
    let (mut rows, mut held) = (handle.watch(), removals.held.clone());
    rows.wait_for(|rows| rows.instances.len() == 4).await.unwrap();

    names.iter().for_each(|name| fs::remove_file(directory.path().join(format!("{name}.toml"))).unwrap());
    let hold = held.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!((hold.before, hold.left, hold.services.len()), (4, 0, 4), "seen emptied, not file by file");
    assert_eq!(handle.rows().instances.len(), 4);
    put(&directory, "a.toml", &service("a"));
    held.wait_for(|hold| hold.as_ref().is_some_and(|hold| hold.services.len() == 3)).await.unwrap();

    let decide = |id: String| {
        let (decisions, (reply, answer)) = (removals.decisions.clone(), oneshot::channel());
        async move {
            decisions.send(Decide { id, decision: Decision::Commit, reply }).await.unwrap();
            answer.await.unwrap()
        }
    };
    assert_eq!(decide("removal-1-7".into()).await, None);
    assert_eq!(handle.rows().instances.len(), 4);
    assert_eq!(decide(hold.id.clone()).await, Some(3));
    rows.wait_for(|rows| rows.instances.len() == 1).await.unwrap();
    assert_eq!(*held.borrow(), None);
    shutdown.cancel();
    owner.await.unwrap().unwrap();
    follower.await.unwrap().unwrap();
}
