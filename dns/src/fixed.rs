//! A catalog that stays, to be asked without sockets: by tests and by `fuzz/`.

use std::sync::Arc;

use muster_catalog::{
    Freshness, Name, Snapshot, Timestamp, Topic, View, Waiter, Waiters,
    port::{BarrierError, BoxFuture, Consistency, Source},
};

use crate::{DnsConfig, Zones, handler::Handler};

/// Answers from that catalog, which is held whole: nothing has to be waited for.
pub(crate) fn handler(snapshot: Snapshot) -> Handler {
    let config = DnsConfig { alt_zones: vec!["consul".to_owned()], ..DnsConfig::default() };
    let zones = Zones::new(&config).expect("the default zones");
    let source = Fixed { view: Arc::new(View::new(Arc::new(snapshot), Freshness::Live)), waiters: Arc::default() };
    Handler::new(zones, config.max_udp_size, Arc::new(source), Arc::new(|| Timestamp(1)))
}

/// A View that stays.
struct Fixed {
    view: Arc<View>,
    waiters: Arc<Waiters>,
}

impl Source for Fixed {
    fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    fn subscribe(&self, topic: Topic) -> Waiter {
        self.waiters.subscribe(topic)
    }

    fn barrier(&self, _: Consistency) -> BoxFuture<'_, Result<(), BarrierError>> {
        Box::pin(async { Ok(()) })
    }

    fn hold(&self, _: &Name) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
