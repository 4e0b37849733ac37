//! What a client was told is so, also if the agent is killed at once.

use super::*;

impl Agent {
    /// Ends it without a word, as a kill does.
    async fn kill(self) {
        self.owner.abort();
        assert!(self.owner.await.unwrap_err().is_cancelled());
    }
}

fn failing(output: &str) -> TtlUpdate {
    TtlUpdate { status: Status::Critical, output: output.into() }
}

#[tokio::test]
async fn a_report_that_was_acknowledged_outlives_a_kill() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(Some(&dir));
    let checks = ["a", "b"].map(|id| CheckText { id: Some(id.into()), status: Some("passing".into()), ..ttl("900s") });
    agent.handle.register_service(service("web", checks.into()), false).await.unwrap();
    agent.handle.update_ttl("a", failing("disk full")).await.unwrap();
    agent.handle.update_ttl("b", failing("no disk")).await.unwrap();
    agent.handle.update_ttl("b", passing("a new disk")).await.unwrap();
    agent.kill().await;

    // The power went while a line was written.
    let added = dir.path().join("results.jsonl");
    let mut torn = std::fs::read(&added).unwrap();
    torn.extend_from_slice(b"\n[\"a\",{\"status\":\"pas");
    std::fs::write(&added, torn).unwrap();
    let agent = Agent::start(Some(&dir));
    let shown = agent.wait_status("a", Status::Critical).await;
    assert!(shown.output.starts_with("disk full ("), "{}", shown.output);
    let shown = agent.wait_status("b", Status::Passing).await;
    assert!(shown.output.starts_with("a new disk ("), "{}", shown.output);
    agent.handle.update_ttl("a", passing("room again")).await.unwrap();
    agent.kill().await;
    let agent = Agent::start(Some(&dir));
    let shown = agent.wait_status("a", Status::Passing).await;
    assert!(shown.output.starts_with("room again ("), "{}", shown.output);
    agent.stop().await;
    assert!(!added.exists(), "all results are in one file after a stop");
}

#[tokio::test]
async fn a_result_goes_with_its_check() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(Some(&dir));
    let extra = CheckText { id: Some("extra".into()), ..ttl("900s") };
    let extra = extra.validate("check", "", "", None).unwrap();
    for _ in 0..2 {
        agent.handle.register_service(service("web", vec![ttl("900s")]), false).await.unwrap();
        agent.handle.register_check(extra.clone()).await.unwrap();
        agent.handle.update_ttl("service:web", passing("up")).await.unwrap();
        agent.handle.update_ttl("extra", passing("up")).await.unwrap();
        agent.handle.deregister_service("web").await.unwrap();
        agent.handle.deregister_check("extra").await.unwrap();
    }
    agent.handle.register_service(service("web", vec![ttl("900s")]), false).await.unwrap();
    agent.handle.register_check(extra).await.unwrap();
    agent.kill().await;
    let agent = Agent::start(Some(&dir));
    let rows = agent.handle.rows();
    let shown: Vec<_> = rows.checks.iter().map(|row| (row.status, &*row.output)).collect();
    assert_eq!(shown, [(Status::Critical, NOT_RUN_YET); 2], "it has not run in this life");
    agent.stop().await;
}

#[tokio::test]
async fn maintenance_goes_with_the_registration_that_it_was_for() {
    let dir = TempDir::new().unwrap();
    let agent = Agent::start(Some(&dir));
    for id in ["web", "other"] {
        agent.handle.register_service(service(id, vec![]), false).await.unwrap();
        agent.handle.set_service_maintenance(id, Some("disk swap".into())).await.unwrap();
    }
    agent.handle.deregister_service("web").await.unwrap();
    agent.kill().await;
    let agent = Agent::start(Some(&dir));
    agent.handle.register_service(service("web", vec![]), false).await.unwrap();
    let out = |rows: &LocalRows| rows.instances.iter().map(|row| row.maintenance.is_some()).collect::<Vec<_>>();
    assert_eq!(out(&agent.handle.rows()), [true, false], "the other one stays out");
    agent.stop().await;
}

#[tokio::test]
async fn the_first_output_of_a_check_is_told_although_its_status_stays() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("web", vec![ttl("900s")]), false).await.unwrap();
    let before = agent.handle.rows().generation;
    agent.handle.update_ttl("service:web", failing("disk full")).await.unwrap();
    assert_eq!(agent.handle.rows().generation, before + 1, "a push carries it");
    agent.handle.update_ttl("service:web", failing("disk fuller")).await.unwrap();
    assert_eq!(agent.handle.rows().generation, before + 1, "later ones travel with the next push");
    assert_eq!(&*agent.handle.rows().checks[0].output, "disk fuller");
    agent.stop().await;
}

#[tokio::test]
async fn a_file_that_takes_a_registration_over_leaves_it_as_it_is() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("web", vec![ttl("900s")]), false).await.unwrap();
    let extra = CheckText { id: Some("extra".into()), ..ttl("900s") };
    let extra = extra.validate("check", "", "", Some("web".into())).unwrap();
    agent.handle.register_check(extra.clone()).await.unwrap();
    for check in ["service:web", "extra"] {
        agent.handle.update_ttl(check, passing("fine")).await.unwrap();
    }
    agent.handle.set_service_maintenance("web", Some("disk swap".into())).await.unwrap();
    let path: Arc<Path> = Arc::from(Path::new("web.toml"));
    let file = |checks| FileService { definition: Arc::new(service("web", checks)), path: path.clone() };
    agent.handle.set_file_services(vec![file(vec![ttl("900s")])]).await.unwrap();
    let shown = |rows: &LocalRows| {
        let checks: Vec<_> = rows.checks.iter().map(|row| (row.id.to_string(), row.status)).collect();
        (checks, rows.instances.iter().map(|row| row.maintenance.is_some()).collect::<Vec<_>>())
    };
    let (own, other) = (("service:web".to_owned(), Status::Passing), ("extra".to_owned(), Status::Passing));
    assert_eq!(shown(&agent.handle.rows()), (vec![own.clone()], vec![true]), "what it does not name is gone");
    agent.handle.register_check(extra).await.unwrap();
    agent.handle.update_ttl("extra", passing("fine")).await.unwrap();
    let both = ["service:web", "extra"].map(|id| CheckText { id: Some(id.into()), ..ttl("800s") }).into();
    agent.handle.set_file_services(vec![file(both)]).await.unwrap();
    assert_eq!(shown(&agent.handle.rows()), (vec![other, own], vec![true]));
    agent.stop().await;
}
