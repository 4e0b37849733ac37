//! Answers of an agent that holds a part of the catalog: whole, or a refusal.
#![allow(clippy::unwrap_used)]

mod support;

use muster_catalog::{Freshness, Name, Scope, Status, Timestamp};
use support::House;

/// Two nodes with a service each, of which this agent holds node `n1` alone.
async fn narrow_house() -> House {
    let house = House::start().await;
    house.catalog.push("n1", "web", &["a"], Status::Passing);
    house.catalog.push("n2", "db", &["b"], Status::Critical);
    house.catalog.narrow(Scope::Services { names: Default::default(), node: Some(Name::lookup("n1")) });
    house
}

/// Every read of the catalog by path.
const READS: [&str; 15] = [
    "/v1/catalog/nodes",
    "/v1/catalog/services",
    "/v1/catalog/services?node-meta=rack:n2",
    "/v1/catalog/service/db",
    "/v1/catalog/service/nothing",
    "/v1/catalog/node/n1",
    "/v1/catalog/node/n2",
    "/v1/catalog/node-services/n2",
    "/v1/health/service/db",
    "/v1/health/service/web?passing",
    "/v1/health/checks/db",
    "/v1/health/node/n2",
    "/v1/health/state/any",
    "/v1/health/state/critical",
    "/v1/muster/services",
];

#[tokio::test]
async fn every_read_answers_what_one_who_holds_all_answers() {
    let narrow = narrow_house().await;
    let whole = House::start().await;
    whole.catalog.push("n1", "web", &["a"], Status::Passing);
    whole.catalog.push("n2", "db", &["b"], Status::Critical);
    for path in READS {
        let (part, all) = (narrow.get(path).await, whole.get(path).await);
        assert_eq!((part.status, part.text), (all.status, all.text), "{path}");
        assert_eq!(part.headers.get("x-consul-index"), all.headers.get("x-consul-index"), "{path}");
    }
    let used = narrow.catalog.used.lock().unwrap().clone();
    assert!(used.contains(&Name::lookup("db")) && used.contains(&Name::lookup("web")), "{used:?}");
}

#[tokio::test]
async fn what_no_member_answers_is_refused_and_what_is_held_goes_on() {
    let house = narrow_house().await;
    house.catalog.set_freshness(Freshness::Stale { since: Timestamp(1) });
    for path in ["/v1/health/state/any?stale", "/v1/catalog/node/n2?stale", "/v1/catalog/services?stale&node-meta=a:b"]
    {
        let reply = house.get(path).await;
        assert_eq!(reply.status, 500, "{path}: {}", reply.text);
        assert!(reply.text.contains("No cluster leader: this agent does not hold that"), "{path}: {}", reply.text);
    }
    for path in ["/v1/catalog/nodes?stale", "/v1/catalog/services?stale", "/v1/catalog/node/n1?stale"] {
        assert_eq!(house.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_read_that_waits_for_a_service_to_come_gets_its_instances() {
    let house = narrow_house().await;
    let index = house.get("/v1/health/service/new").await.index();
    let before = house.subscriptions();
    let (reply, ()) =
        tokio::join!(async { house.get(&format!("/v1/health/service/new?index={index}&wait=10s")).await }, async {
            house.until_subscribed(before).await;
            house.catalog.push("n2", "new", &[], Status::Passing);
        });
    assert_eq!(reply.json()[0]["Node"]["Node"], "n2", "{}", reply.text);
    assert!(reply.index() > index);
}
